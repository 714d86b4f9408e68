// postgres.js: prints what it got, which must not depend on what is between it and the server.
// The connection comes from the PG* variables. It prepares by name, pipelines, and keeps a pool of its own.

import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import postgres from 'postgres';

const say = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`);
const authority = process.env.PGSSLROOTCERT;
// The driver knows no file of authorities; with one it verifies the certificate.
const ssl = authority ? { ca: readFileSync(authority) } : false;
const connected = (max, connection) => postgres({
  max, ssl, connection: { application_name: 'postgres.js', ...connection }, onnotice: () => {},
});
const sql = connected(6, {});

async function queriesAndTypes() {
  say('one', await sql`SELECT 1 AS a, ${'two'}::text AS b, NULL AS c, true AS d`);
  say('types', await sql`SELECT ${'4611686018427387904'}::int8 AS a, ${Buffer.from([0, 255])}::bytea AS b,
    ${sql.json({ x: [1, 2] })}::jsonb AS c, ${[1, 2, 3]}::int[] AS d, 1.50::numeric AS e,
    timestamptz '2026-01-02 03:04:05Z' AS f`);
  say('many', await sql.unsafe('SELECT 1 AS a; SELECT 2 AS b'));
  say('big', (await sql`SELECT repeat('x', 1000000) AS x`)[0].x.length);
  say('columns', (await sql`SELECT 1 AS a, 'x'::text AS b`).columns.map((column) => column.name));
}

async function transactions() {
  await sql`CREATE TYPE mood AS ENUM ('glad', 'sad')`;
  await sql`CREATE TABLE t (n int PRIMARY KEY, s text, m mood)`;
  await sql.begin(async (tx) => {
    await tx`INSERT INTO t VALUES (1, 'one', 'glad')`;
    await tx.savepoint((sp) => sp`INSERT INTO t VALUES (1, 'again', 'sad')`).catch((e) => say('savepoint', e.code));
    await tx`INSERT INTO t ${tx([{ n: 2, s: 'two', m: 'sad' }, { n: 3, s: null, m: null }])}`;
  });
  say('rolled back', await sql.begin(async (tx) => {
    await tx`DELETE FROM t`;
    throw new Error('on purpose');
  }).catch((e) => e.message));
  say('kept', await sql`SELECT * FROM t ORDER BY n`);
  say('unique', await sql`INSERT INTO t VALUES (1, 'x', NULL)`.catch((e) => [e.code, e.constraint_name]));
}

// More at once than there are connections, here and in the pool behind; each text is prepared on each.
async function crowds() {
  const sums = [];
  for (let round = 0; round < 5; round += 1) {
    const answers = await Promise.all([...Array(60).keys()].map((n) => (n % 2
      ? sql`SELECT ${n}::int + ${round}::int AS n`
      : sql`SELECT count(*)::int + ${n}::int AS n FROM t`)));
    sums.push(answers.reduce((sum, rows) => sum + rows[0].n, 0));
  }
  say('sums', sums);
  const mixed = await Promise.all([
    sql`SELECT 1 AS n`, sql`SELECT 1 / ${0}::int AS n`.catch((e) => e.code), sql`SELECT ${'two'}::text AS n`,
  ]);
  say('an error among others', mixed);
}

async function cursorsAndCopies() {
  let seen = 0;
  await sql`SELECT generate_series(1, 1000) AS n`.cursor(100, (rows) => { seen += rows.length; });
  say('cursor', seen);
  const lines = [...Array(3000).keys()].map((n) => `${n + 100}\trow ${n}\t\\N\n`);
  await pipeline(Readable.from(lines), await sql`COPY t FROM STDIN`.writable());
  let bytes = 0;
  // Less than a stream's buffer (16 KiB): the driver may leave its socket paused after more than that.
  const some = await sql`COPY (SELECT n FROM t ORDER BY n LIMIT 2000) TO STDOUT`.readable();
  for await (const chunk of some) bytes += chunk.length;
  say('copied', [(await sql`SELECT count(*)::int AS n FROM t`)[0].n, bytes]);
}

async function changes() {
  const look = () => sql`SELECT * FROM changing`;
  await sql`CREATE TABLE changing (a int)`;
  await sql`INSERT INTO changing VALUES (1)`;
  say('before', await look());
  await sql`ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'`;
  // Prepared before the change: some drivers ask again by themselves, others tell.
  const after = [];
  for (let n = 0; n < 4; n += 1) after.push(await look().then((rows) => rows[0].b, (e) => e.code));
  say('never the old shape with new rows', after.every((b) => b === 'new' || b === '0A000'));
}

async function cancels() {
  const slow = sql`SELECT pg_sleep(60)`.execute();
  await new Promise((resolve) => { setTimeout(resolve, 200); });
  slow.cancel();
  say('cancelled', await slow.catch((e) => e.code));
  say('after it', await sql`SELECT 'well' AS a`);
}

// Two clients with different parameters on the same server connections, by turns.
async function sessions() {
  for (const schema of ['one', 'two']) {
    await sql.unsafe(`CREATE SCHEMA ${schema}; CREATE TABLE ${schema}.place AS SELECT '${schema}' AS name`);
  }
  const one = connected(1, { search_path: 'one', TimeZone: 'Asia/Tokyo' });
  const two = connected(1, { options: '-c search_path=two -c work_mem=5MB' });
  const look = (client) => client`
    SELECT name, current_setting('search_path') AS path, current_setting('TimeZone') AS zone FROM place`;
  for (let round = 0; round < 3; round += 1) say('by turns', [await look(one), await look(two)]);
  await two.begin(async (tx) => {
    await tx`SET LOCAL TimeZone = 'Europe/Berlin'`;
    await tx`CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT generate_series(1, 3) AS n`;
    await tx`SELECT pg_advisory_xact_lock(7)`;
    say('in it', [await look(tx), await tx`SELECT sum(n) FROM mine`]);
    say('locked', await one`SELECT pg_try_advisory_xact_lock(7)`);
  });
  say('unlocked', await one`SELECT pg_try_advisory_xact_lock(7), to_regclass('mine')`);
  await two`SET TimeZone = 'Europe/Rome'`;
  say('after it', [await look(one), await look(two)]);
  await one.end();
  await two.end();
}

async function hears() {
  const heard = new Promise((resolve) => {
    sql.listen('news', resolve).then(() => sql.notify('news', 'it works'));
  });
  say('heard', await heard);
}

for (const part of [queriesAndTypes, transactions, crowds, cursorsAndCopies, changes, cancels, sessions, hears]) {
  await part();
}
await sql.end();
