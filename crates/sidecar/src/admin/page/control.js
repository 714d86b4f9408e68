// Taking a connection back, through the control listener if there is one. The token is read from its field, sent in
// one request, and wiped; it is kept nowhere, and in no address.
const CONTROL = document.body.dataset.control;
const onLoopback = /^(localhost|127(\.\d+){3}|\[::1\])$/.test(location.hostname);
let asked = null; // the checkout that the dialog is about, and its backend: after a restart another may have its number

$("control-note").textContent = !CONTROL ? "Nothing can be taken back from here: control is off." : onLoopback ? ""
  : "To take connections back, open this page through loopback: control is there.";

function reclaimButton(h) {
  if (!CONTROL || !onLoopback || isAtWork(h)) return null;
  return el("button", { type: "button", class: "reclaim", "data-act": "reclaim", "data-checkout": h.id,
    "aria-label": `Take back checkout ${h.id} of ${appOf(h.app)}` }, "Take back…");
}
function askToReclaim(id) {
  const h = state.out.get(id);
  if (!h) return;
  asked = h;
  $("reclaim-what").textContent = plain(`Checkout ${h.id} in ${h.pool}: ${who(h)}, ${h.client}, session ${h.session}, backend ${h.backend_pid}; held ${span(h.age_seconds)}, idle ${span(h.idle_seconds)}.`);
  tellReclaim("", "open");
  $("reclaim").showModal();
  $("token").focus();
}
function tellReclaim(text, stage) {
  $("reclaim-said").textContent = text;
  $("token").value = "";
  $("token-label").hidden = $("reclaim-yes").hidden = stage === "done";
  $("reclaim-yes").disabled = stage === "asking";
  $("reclaim-no").textContent = stage === "done" ? "Close" : "Leave it";
  if (stage === "done") $("reclaim-no").focus();
}
async function reclaim() {
  const token = $("token").value.trim();
  if (!token) return tellReclaim("Give the token: control_token in the configuration.", "open");
  if ($("reclaim-yes").disabled) return;
  tellReclaim("Asking.", "asking");
  try {
    const answer = await fetch(`${CONTROL}/api/v1/checkouts/${asked.id}/reclaim?backend_pid=${asked.backend_pid}`, {
      method: "POST", headers: { authorization: "Bearer " + token }, credentials: "omit", cache: "no-store",
      redirect: "error", signal: AbortSignal.timeout(15000) });
    const said = await answer.json();
    if (answer.status === 401) return tellReclaim("That is not the token.", "open");
    const came = said.outcome ? ` It was cleaned by ${words(said.action)}: ${words(said.outcome)}.` : "";
    tellReclaim((said.said ?? said.error ?? "It answered " + answer.status) + "." + came, answer.ok ? "done" : "open");
  } catch (error) {
    tellReclaim(`${CONTROL} does not answer this page (${error.message}). It answers to pages at the port of the admin listener, on loopback.`, "open");
  }
}
