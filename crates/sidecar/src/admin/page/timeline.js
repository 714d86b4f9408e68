// What was decided, with evidence and outcome.
const SHOWN = 200; // of each kind

function level(e) {
  if (e.level === "error") return "bad";
  if (e.level === "warn") return "warn";
  return e.event === "leak_resolved" ? e.resolution === "returned" ? "warn" : "ok" : "";
}
function outcome(e) {
  if (e.event !== "leak_detected" && e.event !== "reclaim_suppressed") return null;
  const end = outcomeOf(e);
  if (end) return el("small", "", "outcome: ", RESOLVED[end.resolution] ?? words(end.resolution), `, ${unbroken(span((Date.parse(end.time) - Date.parse(e.time)) / 1000))} later`);
  return el("small", "", state.out.has(e.checkout) ? "outcome: still out" : "outcome: not told");
}
/// One event; with all of its fields if it is the one that is looked at.
function eventRow(e, where) {
  const chosen = where !== "story" && view.event === String(e.seq) && !isOtherRun();
  const proof = evidence(e);
  return el("li", { "data-key": where + e.seq, class: chosen ? "chosen" : null },
    el("a", { class: where === "story" ? null : "row", href: chosen ? linkTo({ event: "" }) : toEvent(e.seq), title: e.time, "aria-label": `event ${e.seq} at ${clock(e.time)}` }, clock(e.time)),
    el("b", level(e), words(e.event)),
    el("div", "", sentence(e), proof ? el("small", "", proof) : null, outcome(e),
      where !== "story" ? el("small", "", [e.pool, e.client && e.session && `${e.client}, session ${e.session}`].filter(Boolean).join(" · "),
        e.checkout !== undefined ? [e.pool ? " · " : "", el("a", { href: toCheckout(e.checkout) }, "checkout " + e.checkout)] : null) : null,
      chosen ? fields(e) : null));
}
function fields(e) {
  const text = (value) => typeof value === "string" ? value : JSON.stringify(value);
  return el("dl", "", Object.entries(e).map(([name, value]) => [el("dt", "", name), el("dd", "", text(value))]));
}
function timeline() {
  const matching = state.events.filter((e) => (view.all === "1" || !e.event.startsWith("connection_") || String(e.seq) === view.event) && eventMatches(e));
  let shown = latestOfEach(matching, SHOWN).toReversed();
  const one = !isOtherRun() && state.events.find((e) => String(e.seq) === view.event);
  if (one && !shown.includes(one)) shown = [one, ...shown];
  $("timeline-note").textContent = state.events.length ? matching.length > shown.length ? `the latest ${shown.length} of ${matching.length}` : "newest first" : "";
  $("no-events").hidden = shown.length > 0;
  $("no-events").textContent = view.event && isOtherRun() ? `This link is to an event of another run of pgleash (${view.run}); its event log has it.`
    : state.events.length ? "No event matches the filters." : "Nothing has happened yet.";
  if (view.event && isOtherRun()) $("no-events").hidden = false;
  fill("timeline", shown.map((e) => eventRow(e, "event")));
}
