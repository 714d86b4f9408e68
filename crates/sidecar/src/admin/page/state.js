// What is known, and what of it is shown.
const EVENTS_KEPT = 2000, TRAIL_SECONDS = 300; // events of each kind
// Kinds of which there can be any number, each by itself: they push out no decision.
const CROWDS = [["connection_opened", "connection_closed"], ["client_refused", "checkout_timeout", "upstream_failed"]];
/// The latest events of each kind, up to `most` of it, in the order of `events`.
function latestOfEach(events, most) {
  if (events.length <= most) return events;
  const seen = new Map();
  return events.toReversed().filter((e) => {
    const kind = CROWDS.findIndex((crowd) => crowd.includes(e.event));
    seen.set(kind, (seen.get(kind) ?? 0) + 1);
    return seen.get(kind) <= most;
  }).toReversed();
}
// Reported, but not what keeps a pool from getting its connections back.
const MERELY_SLOW = new Set(["slow_statement", "overdue"]);
const isStale = (h) => Boolean(h.suspect) && !MERELY_SLOW.has(h.suspect);
// What a wedged server waits for is its client, so no statement of that client's is at work.
const isAtWork = (h) => h.phase === "recycling" || h.phase === "active" && h.suspect !== "protocol_wedge";
const REASONS = ["idle_in_transaction", "idle_session", "protocol_wedge", "orphaned", "dirty_return", "overdue", "slow_statement"];
const NO_APP = "(none)";

const state = {
  run: "",            // which process this is
  snapshot: null,
  holders: [],        // of all pools
  out: new Map(),     // checkout -> its holder
  events: [],         // oldest first
  stories: new Map(), // checkout -> its events
  trails: new Map(),  // pool -> what it was in the last minutes
  arrived: 0,         // performance.now() of the last message
};
/// The part of the page's address that is behind `#`: filters, and the checkout or event that is looked at.
const view = { pool: "", app: "", reason: "", q: "", checkout: "", event: "", run: "", all: "", keys: "" };

function readView() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(view)) view[name] = said.get(name) ?? "";
}
/// The address of the view that differs from this one by `changes`. Numbers of checkouts and events are of one process.
function linkTo(changes) {
  const next = { ...view, ...changes };
  next.run = next.checkout || next.event ? changes.run ?? (view.run || state.run) : "";
  const said = new URLSearchParams(Object.entries(next).filter(([, value]) => value));
  return "#" + said;
}
const toCheckout = (id) => linkTo({ checkout: String(id), event: "", run: state.run });
const toEvent = (seq) => linkTo({ event: String(seq), checkout: "", run: state.run });
const isOtherRun = () => Boolean(view.run && state.run && view.run !== state.run);
/// Changes the view without an entry in the browser's history.
function look(changes) {
  history.replaceState(null, "", linkTo(changes));
  readView();
  render();
}

function takeMessage({ run, snapshot, events }) {
  if (run !== state.run) {
    state.events = [];
    state.stories = new Map();
    state.trails = new Map();
    state.run = run;
  }
  const newest = state.events.at(-1)?.seq ?? 0;
  const news = events.filter((e) => e.seq > newest);
  if (news.length) {
    state.events = latestOfEach(state.events.concat(news), EVENTS_KEPT);
    state.stories = Map.groupBy(state.events.filter((e) => e.checkout !== undefined), (e) => e.checkout);
  }
  state.snapshot = snapshot;
  state.holders = snapshot.pools.flatMap((pool) => pool.holders.map((h) => ({ ...h, pool: pool.pool })));
  state.out = new Map(state.holders.map((h) => [h.id, h]));
  state.arrived = performance.now();
  for (const pool of snapshot.pools) {
    const trail = (state.trails.get(pool.pool) ?? []).filter((at) => state.arrived - at.time < TRAIL_SECONDS * 1000);
    trail.push({ time: state.arrived, used: usedOf(pool), stale: staleOf(pool) });
    state.trails.set(pool.pool, trail);
  }
}

// The API tells shares of the size.
const usedOf = (pool) => Math.round(pool.utilization_ratio * pool.size);
const peakOf = (pool) => Math.round(pool.utilization_peak_ratio * pool.size);
const staleOf = (pool) => pool.stale.reduce((sum, [reason, n]) => sum + (MERELY_SLOW.has(reason) ? 0 : n), 0);

function hasWords(text) {
  text = text.toLowerCase();
  return view.q.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}
function holderMatches(h) {
  return (!view.pool || h.pool === view.pool)
    && (!view.app || (h.app || NO_APP) === view.app)
    && (!view.reason || (view.reason === "suspect" ? h.suspect !== null : h.suspect === view.reason))
    && (!view.q || hasWords([h.pool, h.app, h.route, h.client, h.session, h.id, "backend " + h.backend_pid, phaseOf(h), h.pinned,
      h.suspect && words(h.suspect), h.why, h.next, h.statement, h.trace].join(" ")));
}
/// What an event says of its checkout, or another one says of the same.
function aboutEvent(e, field) {
  if (e[field] !== undefined || e.checkout === undefined) return e[field];
  return state.stories.get(e.checkout)?.find((other) => other[field] !== undefined)?.[field];
}
function eventMatches(e) {
  if (view.pool && e.pool !== view.pool) return false;
  if (view.app) {
    const app = aboutEvent(e, "app");
    if (!(e.apps ?? [app]).some((one) => one !== undefined && (one || NO_APP) === view.app)) return false;
  }
  if (view.reason) {
    const reason = e.checkout === undefined ? undefined : aboutEvent(e, "reason");
    if (view.reason === "suspect" ? reason === undefined : reason !== view.reason) return false;
  }
  return !view.q || hasWords([e.pool, e.seq, words(e.event), sentence(e), evidence(e), aboutEvent(e, "app"), aboutEvent(e, "client"),
    aboutEvent(e, "statement")].join(" "));
}
/// What became of a suspicion: the next event that says so.
function outcomeOf(e) {
  return state.stories.get(e.checkout)?.find((later) => later.seq > e.seq && later.event === "leak_resolved" && later.reason === e.reason);
}
