// Keyboard and clicks.
const KEYS = [["/", "search"], ["j, k", "next and previous row"], ["Enter", "open the row; from the search, to the first row"], ["p", "next pool"], ["s", "suspects only, or all"],
  ["t", "to the timeline"], ["h", "to the holders"], ["Escape", "close, then show all"], ["?", "this list"]];
fill("help-keys", KEYS.map(([key, text]) => [el("dt", "", el("kbd", "", key)), el("dd", "", text)]));

const rowsIn = (id) => [...$(id).querySelectorAll("a.row")];
function step(by) {
  const rows = [...rowsIn("holders"), ...rowsIn("timeline")], at = rows.indexOf(document.activeElement);
  rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + by))]?.focus();
}
function nextPool() {
  const names = ["", ...(state.snapshot?.pools ?? []).map((p) => p.pool)];
  look({ pool: names[(names.indexOf(view.pool) + 1) % names.length] });
}
function escape() {
  if (document.activeElement === $("q")) $("q").blur();
  if (view.checkout || view.event) look({ checkout: "", event: "" });
  else look({ pool: "", app: "", reason: "", q: "" });
}
const ON_KEY = {
  "/": () => $("q").focus(), j: () => step(1), k: () => step(-1), p: nextPool, t: () => rowsIn("timeline")[0]?.focus(),
  h: () => rowsIn("holders")[0]?.focus(), s: () => look({ reason: view.reason === "suspect" ? "" : "suspect" }), "?": () => $("help").showModal(),
};
addEventListener("keydown", (press) => {
  if (press.ctrlKey || press.metaKey || press.altKey) return;
  if (press.target === $("token") && press.key === "Enter") return void reclaim();
  if (document.querySelector("dialog[open]")) return;
  if (press.key === "Escape") return escape();
  if (press.target === $("q") && press.key === "Enter") return void rowsIn("holders")[0]?.focus();
  if (press.target.matches("input, select") || view.keys === "off") return;
  if (!ON_KEY[press.key]) return;
  press.preventDefault();
  ON_KEY[press.key]();
});

const ON_CLICK = {
  clear: () => look({ pool: "", app: "", reason: "", q: "" }), help: () => $("help").showModal(), "help-close": () => $("help").close(),
  reclaim: (button) => askToReclaim(Number(button.dataset.checkout)), "reclaim-yes": reclaim, "reclaim-no": () => $("reclaim").close(),
};
addEventListener("click", (click) => {
  const button = click.target.closest("[data-act]");
  if (button) ON_CLICK[button.dataset.act](button);
});
$("reclaim").addEventListener("close", () => { $("token").value = ""; asked = null; });
for (const id of ["pool", "app", "reason"]) $(id).addEventListener("change", () => look({ [id]: $(id).value }));
$("q").addEventListener("input", () => look({ q: $("q").value }));
$("all").addEventListener("change", () => look({ all: $("all").checked ? "1" : "" }));
$("keys").addEventListener("change", () => look({ keys: $("keys").checked ? "" : "off" }));
