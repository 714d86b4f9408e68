// Where the data comes from: one stream, as long as the page can be seen. A browser allows a server six connections
// only, so pages that nobody looks at do without.
const OLD_SECONDS = 3, BLIND_SECONDS = 5, AGAIN_MS = 2000;
let stream = null, trouble = "", again = 0;

function connect() {
  disconnect();
  if (document.hidden) return;
  stream = new EventSource("/api/v1/stream");
  stream.onmessage = (message) => {
    const isFirst = !state.snapshot;
    trouble = "";
    takeMessage(JSON.parse(message.data));
    if (isFirst) follow();
    else render();
  };
  stream.onerror = () => {
    trouble ||= lastWord() || "pgleash does not answer: it was stopped, or cannot be reached";
    // A browser tries again by itself, unless it was refused.
    if (stream.readyState === EventSource.CLOSED) refused();
    watch();
  };
}
function disconnect() {
  clearTimeout(again);
  stream?.close();
  stream = null;
}
async function refused() {
  again = setTimeout(connect, AGAIN_MS);
  const given = new AbortController();
  try {
    const answer = await fetch("/api/v1/stream", { cache: "no-store", signal: given.signal });
    if (!answer.ok) trouble = (await answer.json()).error;
  } catch {
    // What was said stands.
  }
  given.abort();
  watch();
}

/// What pgleash said at its end, if it came to that.
function lastWord() {
  const last = state.events.findLast((e) => e.event === "stopped");
  return last ? "pgleash has stopped: " + sentence(last) : "";
}

/// Says so when what is shown is old. The words do not change each second: who listens to the page hears them once.
function watch() {
  const s = state.snapshot, age = (performance.now() - state.arrived) / 1000;
  const isOld = Boolean(s) && (age > OLD_SECONDS || Boolean(trouble && lastWord()));
  let said = "";
  if (isOld || (!s && trouble)) {
    said = (trouble || "No data comes from pgleash") + "." + (s ? ` What follows is of ${clock(Date.now() - age * 1000)}.` : "");
  } else if (s && s.observation_age_seconds > BLIND_SECONDS) {
    said = `The keeper has not looked since ${clock(s.observed_at_unix_seconds * 1000)}: nobody watches what follows.`;
  }
  $("alarm").hidden = !said;
  if ($("alarm").textContent !== said) $("alarm").textContent = said;
  document.body.classList.toggle("outdated", isOld);
  document.title = (isOld ? "old: " : "") + "pgleash" + (s && !isOld ? titleOf(s) : "");
  if (s) banner(s);
}
function titleOf(s) {
  const stale = s.pools.reduce((sum, pool) => sum + staleOf(pool), 0), waiting = s.pools.reduce((sum, pool) => sum + pool.waiting, 0);
  return (stale ? `: ${stale} stale` : "") + (waiting ? `, ${waiting} waiting` : "");
}

function render() {
  const s = state.snapshot;
  watch();
  $("keys").checked = view.keys !== "off";
  if (!s) return;
  filters(s);
  pools(s);
  wouldHaveDone(s);
  detail();
  holders();
  timeline();
}
/// A link was followed: brings what it names into sight.
function follow() {
  readView();
  render();
  const target = view.checkout ? $("one") : view.event ? document.querySelector("#timeline li.chosen") : null;
  target?.scrollIntoView({ block: "nearest" });
}

addEventListener("hashchange", follow);
addEventListener("pageshow", (shown) => shown.persisted && connect());
document.addEventListener("visibilitychange", () => document.hidden ? disconnect() : connect());
setInterval(watch, 1000);
readView();
connect();
