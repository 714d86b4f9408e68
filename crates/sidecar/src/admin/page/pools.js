// Banner, filters, pools.
function banner(s) {
  const [word, kind] = s.draining ? ["draining", "warn"] : s.flow !== "open" ? [s.flow, "warn"]
    : s.enforcing ? ["enforcing", "ok"] : ["dry run: nothing is taken back", "warn"];
  const fact = (name, value, title) => el("span", { title }, el("span", "dim", name + " "), value);
  fill("banner", el("h1", "", "pgleash"), el("span", "chip " + kind, word), el("span", "facts",
    fact("mode", s.mode), fact("version", s.version), fact("config", s.config_hash, "the same digits: the same configuration, but for secrets"),
    fact("up", span(s.uptime_seconds)), fact("clients", `${s.clients} of ${s.clients_max}`), fact("data", dataAge(s) < 10 ? dataAge(s).toFixed(1) + " s old" : span(dataAge(s)) + " old")));
}
/// Seconds since the keeper's look that is shown.
const dataAge = (s) => s.observation_age_seconds + (performance.now() - state.arrived) / 1000;

function options(id, first, names) {
  if (view[id] && !names.some(([value]) => value === view[id])) names.push([view[id], words(view[id])]);
  fill(id, [["", first], ...names].map(([value, text]) => el("option", { value, "data-key": value || "*" }, text)));
  if ($(id).value !== view[id]) $(id).value = view[id];
}
function filters(s) {
  const apps = [...new Set([...s.pools.flatMap((p) => p.holders.map((h) => h.app)), ...state.events.map((e) => e.app)]
    .filter((app) => app !== undefined).map((app) => app || NO_APP))].sort();
  options("pool", "all", s.pools.map((p) => [p.pool, p.pool]));
  options("app", "all", apps.map((app) => [app, app]));
  options("reason", "all", [["suspect", "any suspicion"], ...REASONS.map((reason) => [reason, words(reason)])]);
  if ($("q").value !== view.q) $("q").value = view.q;
  $("all").checked = view.all === "1";
  $("clear").disabled = !(view.pool || view.app || view.reason || view.q);
}

/// What is used and what of it is stale, over the last minutes.
function sparkline(pool) {
  const trail = state.trails.get(pool.pool) ?? [], top = Math.max(pool.size, ...trail.map((at) => at.used));
  const now = trail.at(-1)?.time ?? 0;
  // Wide enough to be read from the first minute on.
  const length = Math.max(60_000, now - (trail[0]?.time ?? 0));
  const x = (at) => (300 - 300 * (now - at.time) / length).toFixed(1);
  const y = (n) => (39 - 38 * n / Math.max(top, 1)).toFixed(1);
  // Where nothing was seen there is no line.
  const runs = [];
  for (const at of trail) {
    if (runs.length && at.time - runs.at(-1).at(-1).time < 3500) runs.at(-1).push(at);
    else runs.push([at]);
  }
  const points = (run, field) => run.map((at) => `${x(at)} ${y(at[field])}`).join("L");
  const line = (field) => runs.map((run) => "M" + points(run, field)).join("");
  const area = runs.map((run) => `M${x(run[0])} 40L${points(run, "used")}L${x(run.at(-1))} 40Z`).join("");
  const used = trail.map((at) => at.used);
  const label = `last ${span(length / 1000)}: ${Math.min(...used)} to ${Math.max(...used)} in use, up to ${Math.max(...trail.map((at) => at.stale))} stale`;
  return svg("svg", { class: "spark", viewBox: "0 0 300 40", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("title", "", label), svg("path", { class: "rule", d: `M0 ${y(pool.size)}H300` }),
    svg("path", { class: "area", d: area }), svg("path", { class: "used", d: line("used") }), svg("path", { class: "stale", d: line("stale") }));
}

function usage(pool) {
  const used = usedOf(pool), stale = staleOf(pool), c = pool.connections;
  const active = Math.min(c.active, Math.max(0, used - stale));
  const coming = Math.min(c.recycling, Math.max(0, used - stale - active));
  const parts = [["stale", stale], ["active", active], ["held", Math.max(0, used - stale - active - coming)], ["coming", coming]];
  const level = pool.utilization_ratio >= 1 ? "bad" : pool.utilization_ratio >= 0.8 ? "warn" : "";
  return el("div", "", el("div", "gauge", bar(`${used} of ${pool.size} in use, ${stale} stale`, parts, Math.max(pool.size, used)),
    el("b", level, `${used} / ${pool.size}`)), el("small", "", `peak ${peakOf(pool)} in the last minute`));
}
function pools(s) {
  const shown = s.pools.filter((p) => (!view.pool || p.pool === view.pool));
  $("pools-note").textContent = s.pools.length ? "one for each database and user" : "";
  if (!shown.length) return fill("pools", el("div", { class: "empty", "data-key": "empty" }, view.pool ? "There is no such pool."
    : "No pool is open yet: the first client of a database and user opens one."));
  const rows = shown.map((p) => {
    const reasons = p.stale.filter(([, n]) => n).map(([reason, n]) => n + " " + words(reason)).join(", ");
    const growth = p.stale_growth_per_second, eta = p.exhaustion_forecast_seconds, out = p.connections;
    return { key: p.pool, cells: [
      el("td", "", el("a", { href: linkTo({ pool: view.pool === p.pool ? "" : p.pool }) }, p.pool)),
      el("td", "", usage(p)),
      el("td", "", sparkline(p)),
      el("td", p.waiting ? "bad" : "", p.waiting, p.waiting ? el("small", "", "for " + span(p.oldest_wait_seconds)) : null),
      el("td", "", p.holders.length ? span(p.oldest_checkout_seconds) : "none"),
      el("td", staleOf(p) ? "bad" : reasons ? "warn" : "dim", reasons || "none", p.top_holders.map((top) =>
        el("small", "", unbroken(`${who(top)}: ${top.stale} for ${span(top.stale_seconds)} in all`)))),
      el("td", p.overdue ? "warn" : "", p.overdue),
      el("td", growth === null ? "dim" : "bad", growth === null ? "steady" : `+${(60 * growth).toPrecision(2)} a minute`),
      el("td", eta === null ? "dim" : eta < 300 ? "bad" : "warn", eta === null ? "not in sight" : eta <= 0 ? "now" : span(eta)),
    ] };
  });
  const key = [["stale", "stale"], ["active", "statement in flight"], ["held", "waiting for the client"], ["coming", "coming home"]]
    .map(([kind, text]) => el("span", "", svg("svg", { class: "bar", "aria-hidden": "true" }, svg("rect", { class: kind, width: "100%", height: "100%" })), text));
  fill("pools", table("Pools", [["Pool"], ["In use"], ["Lately"], ["Waiting", "n"], ["Oldest", "n"], ["Stale, and who"], ["Overdue", "n"],
    ["Slope", "w"], ["Full in", "w"]], rows), el("div", "key", key));
}
