// node-postgres: prints what it got, which must not depend on what is between it and the server.
// The connection comes from the PG* variables.

import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import copyStreams from 'pg-copy-streams';
import Cursor from 'pg-cursor';

const say = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`);
const authority = process.env.PGSSLROOTCERT;
// The driver knows no file of authorities; with one it verifies the certificate, and binds its proof to the channel.
const ssl = authority ? { ca: readFileSync(authority) } : false;
const options = { application_name: 'node-postgres', ssl, enableChannelBinding: Boolean(authority) };

async function connected(work, more = {}) {
  const client = new pg.Client({ ...options, ...more });
  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end();
  }
}

async function queriesAndTypes(client) {
  say('one', (await client.query('SELECT 1 AS a, $1::text AS b, NULL AS c, true AS d', ['two'])).rows);
  say('types', (await client.query('SELECT $1::int8 AS a, $2::bytea AS b, $3::jsonb AS c, $4::int[] AS d', [
    '4611686018427387904', Buffer.from([0, 255]), { x: [1, 2] }, [1, null, 3],
  ])).rows);
  say('many', (await client.query('SELECT 1 AS a; SELECT 2 AS b')).map((result) => result.rows));
  say('arrays', (await client.query({ text: 'SELECT 1, 2', rowMode: 'array' })).rows);
  say('big', (await client.query("SELECT repeat('x', 5000000) AS x")).rows[0].x.length);
}

async function transactions(client) {
  await client.query('CREATE TABLE t (n int PRIMARY KEY, s text)');
  await client.query('BEGIN');
  await client.query('INSERT INTO t VALUES ($1, $2)', [1, 'one']);
  await client.query('COMMIT');
  await client.query('BEGIN');
  const error = await client.query('INSERT INTO t VALUES ($1, $2)', [1, 'two']).catch((e) => e);
  say('unique', [error.code, error.constraint]);
  const failed = await client.query('SELECT 1').catch((e) => e);
  say('failed', failed.code);
  await client.query('ROLLBACK');
  say('kept', (await client.query('SELECT * FROM t')).rows);
}

async function namedStatements(client) {
  for (let n = 0; n < 10; n += 1) {
    const { rows } = await client.query({ name: 'add', text: 'SELECT $1::int + 1 AS n', values: [n] });
    say('named', rows[0].n);
  }
  const queued = await Promise.all([...Array(30).keys()].map((n) => client.query('SELECT $1::int AS n', [n])));
  say('queued', queued.map((result) => result.rows[0].n));
}

async function copies(client) {
  const lines = [...Array(5000).keys()].map((n) => `${n + 2000}\trow ${n}\n`);
  await pipeline(Readable.from(lines), client.query(copyStreams.from('COPY t FROM STDIN')));
  let bytes = 0;
  const out = client.query(copyStreams.to('COPY (SELECT * FROM t ORDER BY n) TO STDOUT'));
  for await (const chunk of out) bytes += chunk.length;
  say('copied', [bytes, (await client.query('SELECT count(*) FROM t')).rows[0].count]);
}

async function cursors(client) {
  const cursor = client.query(new Cursor('SELECT n FROM t ORDER BY n LIMIT 1000'));
  let total = 0;
  for (let rows = await cursor.read(100); rows.length > 0; rows = await cursor.read(100)) {
    total += rows.reduce((sum, row) => sum + row.n, 0);
  }
  await cursor.close();
  say('cursor', total);
}

async function errorsAndNotices(client) {
  const heard = [];
  client.on('notice', (notice) => heard.push([notice.severity, notice.message]));
  await client.query("DO $$ BEGIN RAISE WARNING 'mind the gap'; END $$");
  say('notices', heard);
  for (const sql of ['SELEC 1', 'SELECT * FROM nowhere', 'SELECT 1/0', "SELECT 'a'::int"]) {
    const error = await client.query(sql).catch((e) => e);
    say('error', [error.code, error.message]);
  }
  say('alive', (await client.query('SELECT 1 AS a')).rows);
}

async function notifications(client) {
  const heard = [];
  client.on('notification', (message) => heard.push([message.channel, message.payload]));
  await client.query('LISTEN news');
  await connected(async (speaker) => {
    for (let n = 0; n < 3; n += 1) await speaker.query(`NOTIFY news, 'item ${n}'`);
  });
  for (let n = 0; n < 500 && heard.length < 3; n += 1) await sleep(20);
  say('heard', heard);
}

// Two clients with different parameters on the same server connections, by turns.
async function sessions(one) {
  for (const schema of ['one', 'two']) {
    await one.query(`CREATE SCHEMA ${schema}; CREATE TABLE ${schema}.place AS SELECT '${schema}' AS name`);
  }
  await connected(async (two) => {
    await one.query("SET search_path = one; SET TimeZone = 'Asia/Tokyo'");
    const look = (client) => client.query({
      name: 'look', rowMode: 'array',
      text: "SELECT name, current_setting('search_path'), current_setting('TimeZone') FROM place",
    }).then((result) => result.rows[0]);
    for (let round = 0; round < 3; round += 1) say('by turns', [await look(one), await look(two)]);
    await two.query('BEGIN');
    await two.query("SET LOCAL TimeZone = 'Europe/Berlin'");
    await two.query('CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT generate_series(1, 3) AS n');
    await two.query('SELECT pg_advisory_xact_lock(7)');
    say('in it', [await look(two), (await two.query('SELECT sum(n) FROM mine')).rows]);
    say('locked', (await one.query('SELECT pg_try_advisory_xact_lock(7)')).rows);
    await two.query('COMMIT');
    say('unlocked', (await one.query("SELECT pg_try_advisory_xact_lock(7), to_regclass('mine')")).rows);
    say('after it', [await look(one), await look(two)]);
  }, { options: '-c search_path=two -c work_mem=5MB' });
}

async function cancels(client) {
  const slow = new pg.Query('SELECT pg_sleep(60)');
  const ended = new Promise((resolve) => { slow.once('error', resolve).once('end', resolve); });
  client.query(slow);
  await sleep(200);
  // A connection of its own, in the clear: whoever knows the key may ask.
  new pg.Client({ ...options, ssl: false }).cancel(client, slow);
  say('cancelled', (await ended).code);
  say('after it', (await client.query("SELECT 'well' AS a")).rows);
}

async function pools() {
  const pool = new pg.Pool({ ...options, max: 8 });
  const doubled = await Promise.all(
    [...Array(60).keys()].map((n) => pool.query('SELECT $1::int * 2 AS n FROM pg_sleep(0.01)', [n])),
  );
  say('pool', doubled.reduce((sum, result) => sum + result.rows[0].n, 0));
  const client = await pool.connect();
  await client.query('BEGIN');
  say('pooled transaction', (await client.query('SELECT 1 AS a')).rows);
  await client.query('COMMIT');
  client.release();
  await pool.end();
}

for (const part of [
  queriesAndTypes, transactions, namedStatements, copies, cursors, errorsAndNotices, notifications,
  sessions, cancels,
]) {
  console.log(`-- ${part.name}`);
  await connected(part);
}
await pools();
