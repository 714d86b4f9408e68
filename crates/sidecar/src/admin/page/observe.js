// In a dry run: what would have been taken back, and whether that would have been right. Made of the events that are at hand.
function wouldHaveDone(s) {
  $("observe").hidden = s.action !== "observe";
  if (s.action !== "observe") return;
  const spared = state.events.filter((e) => e.event === "reclaim_suppressed" && eventMatches(e));
  const due = spared.filter((e) => e.because === "observe"), taken = new Set(due.map((e) => e.checkout));
  const beyond = spared.filter((e) => e.because === "budget" && !taken.has(e.checkout)).length;
  $("observe-note").textContent = state.events.length ? "since " + clock(state.events[0].time) : "";
  if (!due.length) return fill("would", el("div", { class: "empty", "data-key": "empty" }, "Nothing: no connection was due so far."));
  const fate = (e) => outcomeOf(e)?.resolution ?? (state.out.has(e.checkout) ? "out" : "untold");
  const count = (events, ...fates) => events.filter((e) => fates.includes(fate(e))).length;
  // How much sooner the pool would have had them: until it was over, or until now.
  const sooner = (e) => outcomeOf(e)?.left_alone_seconds ?? Math.max(0, (state.out.get(e.checkout)?.idle_seconds ?? 0) - e.idle_seconds);
  const groups = Map.groupBy(due, (e) => `${e.pool}\n${who(e)}\n${e.reason}`);
  const rows = [...groups].map(([key, group]) => {
    const last = group.at(-1);
    return { key, cells: [
      el("td", "", who(last), el("small", "", last.pool)),
      el("td", "", words(last.reason)),
      el("td", "", group.length),
      el("td", count(group, "out") ? "bad" : "", count(group, "out")),
      el("td", "", count(group, "disconnected", "server_lost", "reclaimed", "untold")),
      el("td", count(group, "returned") ? "warn" : "", count(group, "returned")),
      el("td", "", span(group.reduce((sum, e) => sum + sooner(e), 0))),
      el("td", "", el("a", { href: toEvent(last.seq) }, clock(last.time))),
    ] };
  });
  const wrong = count(due, "returned"), held = count(due, "out");
  const sum = `It would have taken back ${many(due.length, "connection")}` + (beyond ? `, and ${beyond} more were due beyond the budget. ` : ". ")
    + (held ? `${held} of them would be in the pool now. ` : "")
    + (wrong ? `${wrong} would have been wrong: the client went on later. Raise the limit before you enforce.` : "None of them went on later.");
  fill("would", el("p", { class: wrong ? "sum warn" : "sum", "data-key": "sum" }, sum), table("What enforcement would have done", [["Who"], ["Reason", "w"], ["Taken", "n"],
    ["Still out", "n"], ["Ended", "n"], ["Went on", "n"], ["Sooner by", "n"], ["Last", "w"]], rows));
}
