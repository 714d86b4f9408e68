// In a dry run: what would have been taken back, and whether that would have been right. Made of the events that are at hand.
function wouldHaveDone(s) {
  const due = s.action !== "observe" ? [] : state.events.filter((e) => e.event === "reclaim_suppressed" && e.because === "observe" && eventMatches(e));
  $("observe").hidden = s.action !== "observe";
  if (s.action !== "observe") return;
  $("observe-note").textContent = state.events.length ? "since " + clock(state.events[0].time) : "";
  if (!due.length) return fill("would", el("div", { class: "empty", "data-key": "empty" }, "Nothing: no connection was due so far."));
  const fate = (e) => outcomeOf(e)?.resolution ?? (state.out.has(e.checkout) ? "out" : "untold");
  const groups = Map.groupBy(due, (e) => `${e.pool}\n${who(e)}\n${e.reason}`);
  const wrong = due.filter((e) => fate(e) === "returned").length, held = due.filter((e) => fate(e) === "out").length;
  const rows = [...groups].map(([key, group]) => {
    const count = (...fates) => group.filter((e) => fates.includes(fate(e))).length;
    const last = group.at(-1);
    return { key, cells: [
      el("td", "", who(last), el("small", "", last.pool)),
      el("td", "", words(last.reason)),
      el("td", "", group.length),
      el("td", count("out") ? "bad" : "", count("out")),
      el("td", "", count("disconnected", "server_lost", "reclaimed", "untold")),
      el("td", count("returned") ? "warn" : "", count("returned")),
      el("td", "", el("a", { href: toEvent(last.seq) }, clock(last.time))),
    ] };
  });
  const sum = `It would have taken back ${many(due.length, "connection")}, budget aside. ` + (held ? `${held} of them would be in the pool now. ` : "")
    + (wrong ? `${wrong} would have been wrong: the client went on later. Raise the limit before you enforce.` : "None of them went on later.");
  fill("would", el("p", { class: wrong ? "sum warn" : "sum", "data-key": "sum" }, sum), table("What enforcement would have done", [["Who"], ["Reason"], ["Taken", "n"],
    ["Still out", "n"], ["Ended", "n"], ["Went on", "n"], ["Last", "w"]], rows));
}
