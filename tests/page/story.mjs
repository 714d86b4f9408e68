// What a person sees of a leak on the live page, from the first suspicion to the end of pgleash.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { Client } from "./client.mjs";
import { cutOff, faintTexts, nameless } from "./eyes.mjs";

const stage = JSON.parse(process.argv[2]);
const asked = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
// As long as a name can be, and without a place to break it.
const HOSTILE = "<img/src=x/onerror=alert(1)>".padEnd(63, "w");
const SIZES = [["telephone", 360, 780], ["laptop", 1280, 800], ["wall", 1920, 1080]];
const PATIENCE = 15_000;

const browser = await chromium.launch({ executablePath: stage.browser, args: ["--no-sandbox"] });
const clients = [];

async function tell(chapter) {
  const began = Date.now();
  await chapter();
  console.log(`${chapter.name}: as it should be, ${((Date.now() - began) / 1000).toFixed(1)} s`);
}

/// A page at `address`, on which nothing may go wrong but what is expected.
async function open(address, hash = "", { width = 1280, height = 800, colorScheme = "light", expected = [], until = "#banner .chip" } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, reducedMotion: "reduce" });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.wrong = [];
  const note = (text) => expected.some((known) => text.includes(known)) || page.wrong.push(text);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && note(message.text()));
  page.on("pageerror", (error) => note(error.stack ?? String(error)));
  page.on("dialog", (dialog) => { note("a dialog: " + dialog.message()); dialog.dismiss(); });
  await page.goto(`http://${address}/${hash}`);
  await page.waitForSelector(until);
  return page;
}
async function close(page) {
  assert.deepEqual(page.wrong, []);
  await page.context().close();
}
async function client(at, app) {
  const one = await Client.connect(at.listen, app);
  clients.push(one);
  return one;
}
/// A client that begins a transaction and forgets it.
async function leak(at, app, sql = "SELECT 'a secret'") {
  const leaking = await client(at, app);
  await leaking.query("BEGIN");
  await leaking.query(sql);
  return leaking;
}
const row = (page, app) => page.locator("#holders tbody tr", { hasText: app });
const story = (page, ...words) => words.reduce((rows, word) => rows.filter({ hasText: word }), page.locator("#timeline li"));
const hash = (page) => page.evaluate(() => Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
const please = async (what) => { process.stdout.write(`please ${what}\n`); assert.equal((await asked.next()).value, "done"); };

/// A leak is suspected, taken back, and told; what clients call themselves stays text.
async function enforcement() {
  const page = await open(stage.enforcing.admin);
  const banner = await page.textContent("#banner");
  for (const said of [/enforcing/, /mode transaction/, /version \d/, /config [0-9a-f]{12}/, /data .* old/]) assert.match(banner, said);
  const leaking = await leak(stage.enforcing, "checkout-api", "UPDATE pg_class SET relname = relname WHERE oid = 4711 /*route='POST%20%2Fpay'*/");
  await leak(stage.enforcing, HOSTILE);
  const suspect = page.locator("#holders tr.suspect", { hasText: "checkout-api" });
  await suspect.waitFor();
  assert.match(await suspect.textContent(), /POST \/pay.*idle in transaction.*reclaim in/);
  assert.match(await page.textContent("#pools"), /[12] idle in transaction/);
  assert.match(await page.title(), /[12] stale/);
  await page.locator("#holders tr.suspect", { hasText: HOSTILE }).waitFor();
  assert.equal(await page.locator("img").count(), 0, "a name is no markup");
  await suspect.locator("a.row").click();
  assert.match(await page.textContent("#detail"), /update pg_class set relname = relname where oid = \?/i);
  await page.locator("#detail", { hasText: "It is over: taken back." }).waitFor();
  assert.match(await page.textContent("#detail"), /leak detected.*leak resolved.*recycled/s);
  const detected = story(page, "leak detected", "checkout-api");
  assert.match(await detected.textContent(), /held .* idle .* of 5\.0\ss.*outcome: taken back/s);
  await story(page, "recycled", "reissued").first().waitFor();
  await story(page, "leak resolved", "checkout-api", "taken back").waitFor();
  await assert.rejects(leaking.untilReady(), /25P03/);
  await page.locator("#holders", { hasText: "No server connection is checked out." }).waitFor();
  await close(page);
}

/// Nothing is taken back, and the page says what would have been.
async function dryRun() {
  const page = await open(stage.observing.admin);
  assert.match(await page.textContent("#banner"), /dry run: nothing is taken back/);
  assert.match(await page.textContent("#observe"), /What enforcement would have done.*Nothing: no connection was due/s);
  await leak(stage.observing, "checkout-api", "SELECT 1 /*route='POST%20%2Fpay'*/");
  await leak(stage.observing, HOSTILE);
  const slow = await leak(stage.observing, "slow-thinker");
  const lock = await leak(stage.observing, "lock-keeper", "CREATE TABLE booked (n int)");
  await lock.query("COMMIT");
  await lock.query("BEGIN");
  await lock.query("LOCK TABLE booked");
  const waiting = await client(stage.observing, "reports");
  waiting.send("SELECT count(*) FROM booked");
  const would = page.locator("#would");
  await would.locator("tr", { hasText: "slow-thinker" }).waitFor();
  await slow.query("COMMIT");
  await would.locator("p", { hasText: "1 would have been wrong" }).waitFor();
  await story(page, "reclaim suppressed", "checkout-api", "the action is observe").waitFor();
  await story(page, "leak resolved", "slow-thinker", "it went on by itself", "and left alone: the action is observe").waitFor();
  const blocked = row(page, "reports");
  await blocked.filter({ hasText: "waits for a lock" }).waitFor();
  await blocked.getByRole("link", { name: /^lock-keeper/ }).click();
  assert.match(await page.textContent("#detail h2"), /lock-keeper/);
  assert.match(await page.textContent("#detail"), /Blocks1 other checkout/);
  await close(page);
}

/// What is looked at is in the address, and an address shows the same again.
async function permalinksAndFilters() {
  const page = await open(stage.observing.admin);
  await page.selectOption("#app", "checkout-api");
  await page.waitForFunction(() => document.querySelectorAll("#holders tbody tr").length === 1);
  await page.fill("#q", "pay idle");
  assert.deepEqual(await hash(page), { app: "checkout-api", q: "pay idle" });
  await page.reload();
  await page.locator("#holders-note", { hasText: "1 match" }).waitFor();
  assert.equal(await page.inputValue("#app"), "checkout-api");
  await page.locator("#timeline a.row").first().click();
  const { event, run } = await hash(page);
  assert.match(run, /^[0-9a-f]{8}$/);
  await page.click("#clear");
  const other = await open(stage.observing.admin, `#event=${event}&run=${run}`);
  assert.match(await other.textContent("#timeline li.chosen"), new RegExp(`seq${event}.*checkout-api`, "s"));
  await other.goto(`http://${stage.observing.admin}/#reason=slow_statement`);
  await other.locator("#holders", { hasText: "None of them matches the filters." }).or(row(other, "reports")).first().waitFor();
  assert.equal(await row(other, "checkout-api").count(), 0);
  await other.goto(`http://${stage.observing.admin}/#checkout=1&run=00000000`);
  await other.locator("#detail", { hasText: "another run of pgleash" }).waitFor();
  await close(other);
  await close(page);
}

/// All of it without a mouse; focus survives each refresh.
async function keyboard() {
  const page = await open(stage.observing.admin);
  await row(page, "checkout-api").waitFor();
  await page.keyboard.press("/");
  await page.keyboard.type("checkout-api");
  await page.locator("#holders-note", { hasText: "1 match" }).waitFor();
  await page.keyboard.press("Enter");
  const focused = () => page.evaluate(() => document.activeElement.closest("tr, li")?.dataset.key);
  const key = await focused();
  assert.ok(key, "the first row has the focus");
  const idle = await row(page, "checkout-api").textContent();
  await page.waitForFunction((before) => document.querySelector("#holders tbody tr").textContent !== before, idle);
  assert.equal(await focused(), key, "a refresh leaves the focus where it is");
  await page.keyboard.press("Enter");
  await page.locator("#detail h2", { hasText: "checkout-api" }).waitFor();
  await page.keyboard.press("Escape");
  assert.deepEqual(await hash(page), { q: "checkout-api" });
  await page.keyboard.press("Escape");
  assert.deepEqual(await hash(page), {});
  await page.keyboard.press("s");
  assert.deepEqual(await hash(page), { reason: "suspect" });
  await page.keyboard.press("s");
  await page.keyboard.press("p");
  assert.deepEqual(await hash(page), { pool: "bench@bench" });
  await page.keyboard.press("?");
  await readable(page, "the list of keys");
  await page.screenshot({ path: `${stage.shots}/keys.png` });
  await page.getByLabel("single keys work").uncheck();
  await page.keyboard.press("Escape");
  await page.keyboard.press("p");
  assert.deepEqual(await hash(page), { pool: "bench@bench", keys: "off" }, "single keys can be turned off");
  await close(page);
}

/// A connection is taken back by hand, with the token, which is nowhere afterwards.
async function byHand() {
  const refusal = ["the server responded with a status of 401"];
  const page = await open(stage.observing.admin.replace("127.0.0.1", "localhost"), "", { expected: refusal, colorScheme: "dark" });
  const requests = [];
  page.on("request", (request) => requests.push(request.url()));
  const leaking = await leak(stage.observing, "by-hand");
  await row(page, "by-hand").getByRole("button", { name: /Take back/ }).click();
  assert.match(await page.textContent("#reclaim-what"), /by-hand/);
  await readable(page, "the question for the token");
  await page.screenshot({ path: `${stage.shots}/reclaim.png` });
  await page.click("#reclaim-yes");
  await page.locator("#reclaim-said", { hasText: "Give the token" }).waitFor();
  await page.fill("#token", "not-the-token-at-all");
  await page.keyboard.press("Enter");
  await page.locator("#reclaim-said", { hasText: "That is not the token." }).waitFor();
  assert.equal(await page.inputValue("#token"), "");
  await page.fill("#token", stage.token);
  await page.click("#reclaim-yes");
  await page.locator("#reclaim-said", { hasText: "taken back; its client was told. It was cleaned by reset: reissued." }).waitFor();
  await assert.rejects(leaking.untilReady(), /25P03.*(administrator|taken back)/);
  await page.click("#reclaim-no");
  await story(page, "leak resolved", "by-hand", "taken back").waitFor();
  const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href,
    document.documentElement.outerHTML, [...document.querySelectorAll("input")].map((input) => input.value)]));
  assert.ok(!kept.includes(stage.token), "the token is kept nowhere");
  assert.ok(requests.every((url) => !url.includes(stage.token)), "the token is in no address");
  const [address, backend] = requests.at(-1).split("?");
  assert.match(address, new RegExp(`^http://${stage.observing.control}/api/v1/checkouts/\\d+/reclaim$`));
  assert.match(backend, /^backend_pid=\d+$/, "whose number it is after a restart is not taken for granted");
  await close(page);
  await askFromElsewhere();
  const plain = await open(stage.enforcing.admin);
  await plain.locator("#control-note", { hasText: "control is off" }).waitFor();
  await close(plain);
}

/// A browser lets no other page ask, whatever token it has.
async function askFromElsewhere() {
  const page = await (await browser.newContext()).newPage();
  await page.goto(`http://${stage.enforcing.admin}/healthz`);
  const said = await page.evaluate(async ([control, token]) => {
    const asked = fetch(`http://${control}/api/v1/pause`, { method: "POST", headers: { authorization: `Bearer ${token}` } });
    return asked.then((answer) => answer.status, (error) => error.name);
  }, [stage.observing.control, stage.token]);
  assert.equal(said, "TypeError", "the browser does not let it");
  const snapshot = await (await fetch(`http://${stage.observing.admin}/api/v1/snapshot`)).json();
  assert.equal(snapshot.flow, "open", "nothing was asked");
  await page.context().close();
}

/// One page too many says so, and goes on when another is closed.
async function crowd() {
  const given = new AbortController();
  // Pages that were closed before are noticed within a second or two.
  for (const others = []; others.length < 16;) {
    const other = await fetch(`http://${stage.enforcing.admin}/api/v1/stream`, { signal: given.signal });
    if (other.status === 200) others.push(other);
    else await other.text();
  }
  const refusal = ["the server responded with a status of 503"];
  const page = await open(stage.enforcing.admin, "", { expected: refusal, until: "#alarm:has-text('16 live pages are open already')" });
  given.abort();
  await page.waitForSelector("#banner .chip");
  await page.locator("#alarm").waitFor({ state: "hidden" });
  // Of a crowd of another kind none pushes out a decision.
  const kept = await page.evaluate(() => {
    const crowd = Array.from({ length: 5000 }, (_, n) => ({ event: n % 2 ? "client_refused" : "connection_opened" }));
    const left = latestOfEach([{ event: "leak_detected" }, ...crowd], 200);
    return [left.length, left[0].event];
  });
  assert.deepEqual(kept, [401, "leak_detected"]);
  await close(page);
}

/// It can be read: on each size, light and dark, also when it is old.
async function looks() {
  for (const colorScheme of ["light", "dark"]) {
    const page = await open(stage.observing.admin, "", { colorScheme });
    await row(page, "checkout-api").waitFor();
    await story(page, "leak detected").first().waitFor();
    for (const [, width, height] of SIZES) {
      await page.setViewportSize({ width, height });
      await readable(page, `${width}, ${colorScheme}`);
    }
    await row(page, "checkout-api").locator("a.row").click();
    await page.locator("#detail dl").waitFor();
    for (const [size, width, height] of SIZES) {
      await page.setViewportSize({ width, height });
      await page.screenshot({ path: `${stage.shots}/${size}-${colorScheme}.png`, fullPage: true });
      await readable(page, `${width}, ${colorScheme}, with one checkout`);
    }
    await close(page);
  }
}
async function readable(page, name) {
  assert.deepEqual(await page.evaluate(faintTexts), [], name);
  assert.deepEqual(await page.evaluate(cutOff), [], name);
  assert.deepEqual(await page.evaluate(nameless), [], name);
}

async function alarmed(page, words) {
  await page.locator("#alarm", { hasText: words }).waitFor().catch(async () => {
    assert.match(await page.textContent("#alarm") + " Timeline: " + await page.textContent("#timeline"), words);
  });
}

/// pgleash stops, and the page says so; it comes back, and the page goes on; it is killed.
async function theEnd() {
  const expected = ["net::ERR_"];
  const pages = await Promise.all(["light", "dark"].map((colorScheme) => open(stage.enforcing.admin, "", { colorScheme, expected })));
  await please("stop pgleash");
  for (const [n, page] of pages.entries()) {
    await alarmed(page, /^pgleash has stopped: every client left. What follows is of [\d:]+\.$/);
    assert.ok(await page.evaluate(() => document.body.classList.contains("outdated")));
    assert.match(await page.title(), /^old: /);
    await readable(page, "gone");
    await page.screenshot({ path: `${stage.shots}/gone-${["light", "dark"][n]}.png` });
  }
  await please("start pgleash");
  for (const page of pages) {
    await page.locator("#alarm").waitFor({ state: "hidden" });
    await page.locator("#timeline li").first().waitFor();
    assert.equal(await story(page, "leak detected").count(), 0, "another run has other events");
  }
  await please("kill pgleash");
  for (const page of pages) {
    await alarmed(page, /^pgleash does not answer: .* What follows is of [\d:]+\.$/);
    await close(page);
  }
}

try {
  // What does not meet is told at the same time: it mostly waits.
  for (const chapters of [[enforcement, dryRun], [permalinksAndFilters, keyboard, byHand, crowd], [looks, theEnd]]) {
    await Promise.all(chapters.map(tell));
  }
} catch (failure) {
  console.log(failure.stack ?? failure);
  process.exitCode = 1;
} finally {
  clients.forEach((client) => client.close());
  await browser.close();
  process.stdin.destroy();
}
