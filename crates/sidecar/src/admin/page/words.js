// Numbers, names and events in words.
const PHASES = { idle: "idle", active: "statement in flight", idle_in_transaction: "idle in transaction",
  held: "held, idle", recycling: "coming home" };
const WAITS = { running: "nothing: it runs", lock: "a lock", io: "files", client: "its client", other: "something else" };
const SUPPRESSED = { observe: "the action is observe", budget: "the budget is spent", moved: "the holder moved meanwhile",
  draining: "pgleash is draining", unconfirmed: "the server does not say that it waits for its client" };
const RESOLVED = { returned: "it went on by itself: no leak", reclaimed: "taken back", disconnected: "its client left",
  server_lost: "its server connection was lost" };

const phaseOf = (h) => h.suspect === "protocol_wedge" ? "its server waits for it" : PHASES[h.phase] ?? words(h.phase);
const words = (text) => String(text).replaceAll("_", " ");
const unbroken = (text) => String(text).replace(/(\d) (ms|s|min|h|d|%)\b/g, "$1\u00a0$2");
const many = (n, one, more) => n + " " + (n === 1 ? one : more ?? one + "s");
const appOf = (app) => app || "no application_name";

function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.001) return "0 s";
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 100) return Math.round(seconds) + " s";
  const m = Math.floor(seconds / 60), s = Math.floor(seconds % 60);
  if (m < 60) return m + " min" + (s && m < 10 ? " " + s + " s" : "");
  const h = Math.floor(m / 60);
  return h < 48 ? h + " h " + (m % 60) + " min" : Math.floor(h / 24) + " d";
}
const clock = (time) => new Date(time).toLocaleTimeString([], { hour12: false });

function groundsOf(of) {
  if (of.pauses_seen === undefined) return "";
  return `usual: at most ${span(of.worst_pause_seconds)} in ${of.pauses_seen} pauses; ${of.later_over} of `
    + `${of.later_over + of.later_idle} later ones are over, by chance in ${(100 * of.p_value).toPrecision(2)} % of cases; `
    + `ceiling ${span(of.ceiling_seconds)}`;
}
function blockersOf(h) {
  return (h.blocked_by ?? []).map((by) => typeof by === "number" ? "backend " + by
    : (by.checkout === null ? "somebody outside this pool" : appOf(by.app) + (by.route ? " " + by.route : "")) + `, backend ${by.backend_pid}`);
}
const who = (e) => appOf(e.app) + (e.route ? " " + e.route : "");
const tops = (holders) => holders.map((top) => `${who(top)} (${top.stale} for ${span(top.stale_seconds)})`).join(", ");

const SENTENCES = {
  started: (e) => `pgleash ${e.version} listens on ${e.listen}, action ${e.action}; at most ${span(e.idle_in_transaction_seconds)} idle in transaction, `
    + `${span(e.idle_session_seconds)} in session, budget ${Math.round(100 * e.budget_share)} % in ${span(e.budget_seconds)}`,
  draining: (e) => `${many(e.clients, "client has", "clients have")} ${span(e.limit_seconds)} to leave`,
  stopped: (e) => e.drained ? "every client left" : `${many(e.clients_cut, "client was", "clients were")} cut off`,
  pool_opened: (e) => `up to ${many(e.size, "connection")}`,
  connection_opened: (e) => `backend ${e.backend_pid}, in ${span(e.connect_seconds)}`,
  connection_closed: (e) => `backend ${e.backend_pid}: ${words(e.reason)} after ${span(e.age_seconds)} and ${many(e.uses, "use")}`,
  checkout_timeout: (e) => `${e.client} got no connection within ${span(e.waited_seconds)}: ${e.diagnosis}`,
  leak_detected: (e) => `${who(e)}: ${words(e.reason)} for ${span(e.idle_seconds)}`,
  leak_resolved: (e) => `${who(e)}: ${RESOLVED[e.resolution] ?? words(e.resolution)} after ${span(e.age_seconds)}; was ${words(e.reason)}`
    + (e.left_alone ? `, due for ${span(e.left_alone_seconds)} and left alone: ${SUPPRESSED[e.left_alone] ?? words(e.left_alone)}` : ""),
  reclaim_suppressed: (e) => `${who(e)}: due as ${words(e.reason)}, and left alone: ${SUPPRESSED[e.because] ?? words(e.because)}`,
  recycled: (e) => `backend ${e.backend_pid}: ${words(e.action)}, ${words(e.outcome)} in ${e.elapsed_seconds < 0.001 ? "less than 1 ms" : span(e.elapsed_seconds)}` + (e.detail ? `; ${e.detail}` : ""),
  reclaim_regretted: (e) => `${who(e)} came back ${span(e.after_seconds)} after its connection was taken: that was wrong`,
  limit_widened: (e) => `${who(e)}: limit for ${words(e.limit)} from ${span(e.from_seconds)} to ${span(e.to_seconds)}, because a suspect `
    + (e.because === "regretted" ? "came back after its connection was taken" : "went on by itself"),
  exhaustion_foreseen: (e) => `full in ${span(e.in_seconds)} if stale checkouts go on to grow; ${e.stale} now: ${tops(e.holders)}`,
  exhaustion_averted: (e) => `stale checkouts do not fill the pool any more; ${e.stale} now`,
  missing_index_suspected: (e) => `${e.table} is read from end to end ${e.scans_per_second.toPrecision(2)} times a second, `
    + `${Math.round(e.rows_read_per_second)} rows a second, usually ${Math.round(e.usual_rows_read_per_second)}; slow: ${e.apps.map(appOf).join(", ")}`,
  survey_failed: (e) => `the server cannot be asked what slow statements wait for: ${e.detail}`,
  survey_recovered: () => "the server can be asked again what slow statements wait for",
  client_refused: (e) => `${e.client}: ${words(e.reason)}` + (e.detail ? `; ${e.detail}` : ""),
  upstream_failed: (e) => `${e.sqlstate} ${e.detail}`,
  upstream_recovered: (e) => `was away for ${span(e.down_seconds)}, tried ${many(e.attempts, "time")}`,
  reloaded: (e) => [...e.changed, ...e.needs_restart.map((key) => key + " needs a restart")].join("; ") || "nothing has changed",
  reload_refused: (e) => e.problems.join("; "),
  paused: (e) => `new checkouts wait; ${e.checkouts} are out`,
  resumed: (e) => `checkouts go on; ${e.waiting} waited`,
  took_over: (e) => `${e.listen} came from another pgleash`,
  handed_over: (e) => `another pgleash serves; ${many(e.clients, "client has", "clients have")} ${span(e.limit_seconds)}`,
  credentials_reloaded: (e) => `${e.what}: ${e.detail}`,
  credentials_kept: (e) => `${e.what}: ${e.detail}`,
  notifications_failing: (e) => `${e.channel}, ${e.receiver}: ${e.detail}`,
  notifications_recovered: (e) => `${e.channel}, after ${span(e.failed_seconds)}`,
};

/// An event in one sentence; one that is not known here, by its fields.
function sentence(e) {
  const say = SENTENCES[e.event];
  if (say) return unbroken(say(e));
  const plain = Object.entries(e).filter(([name]) => !["time", "level", "seq", "event", "pool"].includes(name));
  return plain.map(([name, value]) => words(name) + " " + (typeof value === "object" ? JSON.stringify(value) : value)).join(", ");
}
/// What it is founded on.
function evidence(e) {
  if (e.idle_seconds === undefined || e.checkout === undefined) return "";
  const parts = [`held ${span(e.age_seconds)}`, `idle ${span(e.idle_seconds)}` + (e.limit_seconds ? ` of ${span(e.limit_seconds)}` : ""),
    groundsOf(e), e.waits_for ? `waits for ${WAITS[e.waits_for] ?? e.waits_for}` : "", ...blockersOf(e).map((by) => "blocked by " + by)];
  return unbroken(parts.filter(Boolean).join(" · "));
}
