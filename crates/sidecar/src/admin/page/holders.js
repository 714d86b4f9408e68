// Who holds what, and one checkout closely.
const ROWS = 100;

function holders() {
  const all = state.holders, shown = all.filter(holderMatches);
  const rank = (h) => !h.suspect ? 0 : isStale(h) ? 2 : 1;
  shown.sort((a, b) => rank(b) - rank(a) || (b.blocks ?? 0) - (a.blocks ?? 0) || b.age_seconds - a.age_seconds || a.id - b.id);
  $("holders-note").textContent = !all.length ? "" : `${all.length} checked out`
    + (shown.length < all.length ? `, ${shown.length} match` : "") + (shown.length > ROWS ? `, ${ROWS} shown` : "") + "; suspects first, then the oldest";
  if (!shown.length) return fill("holders", el("div", { class: "empty", "data-key": "empty" },
    all.length ? "None of them matches the filters." : "No server connection is checked out."));
  const rows = shown.slice(0, ROWS).map((h) => ({
    key: h.id,
    kind: [!h.suspect ? "" : isStale(h) ? "suspect" : "slow", String(h.id) === view.checkout ? "chosen" : ""].join(" ").trim(),
    cells: [
      el("td", "", el("a", { class: "row", href: toCheckout(h.id) }, appOf(h.app)), h.route ? el("div", "", h.route) : null,
        el("small", "", [h.pool, h.client, "session\u00a0" + h.session].join(" · "))),
      el("td", "", doing(h)),
      el("td", "", span(h.age_seconds)),
      el("td", "", idleOf(h)),
      el("td", "", h.suspect ? el("b", isStale(h) ? "bad" : "warn", words(h.suspect)) : null,
        el("div", h.suspect ? "dim" : "", unbroken(h.why))),
      el("td", "", unbroken(h.next), reclaimButton(h)),
    ] }));
  fill("holders", table("Checkouts", [["Who"], ["Doing"], ["Held", "n"], ["Idle"], ["Why"], ["Next"]], rows));
}

function doing(h) {
  const more = ["backend " + h.backend_pid, h.pinned ? "pinned: " + words(h.pinned) : ""].filter(Boolean).join(", ");
  return [phaseOf(h), el("small", "", more),
    h.waits_for && h.waits_for !== "running" ? el("small", "warn", "waits for " + (WAITS[h.waits_for] ?? h.waits_for)) : null,
    ...blockers(h).map((by) => el("small", "", "blocked by ", by)),
    h.blocks ? el("small", "bad", "blocks " + many(h.blocks, "other")) : null];
}
function blockers(h) {
  const said = blockersOf(h);
  return (h.blocked_by ?? []).map((by, n) => by.checkout === null ? said[n] : el("a", { href: toCheckout(by.checkout) }, said[n]));
}
function idleOf(h) {
  const kind = isStale(h) ? "stale" : h.suspect ? "slow" : "active";
  return [el("div", "nowrap", unbroken(`${span(h.idle_seconds)} of ${span(h.limit_seconds)}`)),
    bar(`idle ${span(h.idle_seconds)} of ${span(h.limit_seconds)}`, [[kind, Math.min(h.idle_seconds, h.limit_seconds)]], h.limit_seconds)];
}

function detail() {
  const id = Number(view.checkout);
  $("one").hidden = !view.checkout;
  if (!view.checkout) return;
  const h = isOtherRun() ? undefined : state.out.get(id);
  const story = isOtherRun() ? [] : state.stories.get(id) ?? [];
  const last = h ?? story.findLast((e) => e.app !== undefined);
  const title = el("div", "title", el("h2", "", `Checkout ${view.checkout}` + (last ? ": " + who(last) : "")),
    h ? reclaimButton(h) : null, el("a", { href: linkTo({ checkout: "" }) }, "close"));
  fill("detail", title, el("div", { class: "body", "data-key": "body" }, h ? present(h) : over(story, last), story.length ? [el("h3", "", "Its story"),
    el("ol", "events", story.map((e) => eventRow(e, "story")))] : null));
}
function over(story, last) {
  if (isOtherRun()) return el("p", "", `This link is to a checkout of another run of pgleash (${view.run}); this is run ${state.run}. Its event log has the story.`);
  const end = story.findLast((e) => e.event === "leak_resolved");
  if (!last) return el("p", "", "It is over, or never was. Only of what was suspect there are events.");
  return [el("p", "", "It is over: " + (end ? (RESOLVED[end.resolution] ?? words(end.resolution)) + "." : "its last word is below.")), facts(last)];
}
const present = (h) => [el("p", "", h.suspect ? el("b", isStale(h) ? "bad" : "warn", words(h.suspect) + ": ") : "Not suspect: ", unbroken(h.why)),
  el("p", "", el("span", "dim", "Next: "), unbroken(h.next)), facts(h)];
function facts(h) {
  const rows = [
    ["Pool", h.pool], ["Client", `${h.client}, session ${h.session} (the process id that it was told)`], ["Doing", h.phase && phaseOf(h)],
    ["Backend", h.backend_pid + (h.connection_uses ? `, ${span(h.connection_age_seconds)} old, use ${h.connection_uses}` : "")],
    ["Held", span(h.age_seconds) + (h.waited_seconds !== undefined ? `, after a wait of ${span(h.waited_seconds)}` : "")],
    ["Idle", span(h.idle_seconds) + (h.limit_seconds ? ` of ${span(h.limit_seconds)}` : "")], ["Grounds", groundsOf(h) || "the configured limit"],
    ["Pinned", h.pinned && (words(h.pinned) + ` for ${span(h.pinned_seconds)}`)],
    ["Pinned by", h.pinned_by ? el("code", "", h.pinned_by) : ""], ["Waits for", h.waits_for && (WAITS[h.waits_for] ?? h.waits_for)],
    ["Blocked by", blockers(h).flatMap((by, n) => n ? [", ", by] : [by])], ["Blocks", h.blocks ? many(h.blocks, "other checkout") : ""],
    ["Statement", h.statement ? el("code", "", h.statement) : ""], ["Trace", h.trace ? el("code", "", h.trace) : ""],
  ].filter(([, value]) => Array.isArray(value) ? value.length : value);
  return el("dl", "", rows.map(([name, value]) => [el("dt", "", name), el("dd", "", typeof value === "string" ? unbroken(value) : value)]));
}
