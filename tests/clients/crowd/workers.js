// A crowd of workers, each with settings of its own, over node-postgres. The first argument says whose words a worker
// uses when it connects and in its transactions: those of Rails' PostgreSQLAdapter, of Prisma or of Sequelize.
//
// All connect, then each does ten transactions, reads its settings back in each, and leaves. The connection comes from
// the PG* variables, the number of workers from CROWD_WORKERS. Exit code 1 if a worker met an error, or something that is
// not its own.

import assert from 'node:assert/strict';
import pg from 'pg';

const WORKERS = Number(process.env.CROWD_WORKERS);
const TRANSACTIONS = 10;
const LOOK = `SELECT place.name, current_setting('search_path') AS path, current_setting('TimeZone') AS zone,
  current_setting('statement_timeout') AS timeout, current_setting('application_name') AS application,
  current_setting('IntervalStyle') AS intervals, current_setting('client_min_messages') AS messages FROM place`;
const LEVELS = ['warning', 'error', 'notice'];

const zone = (n) => `Etc/GMT${n % 25 < 12 ? '' : '+'}${(n % 25) - 12}`;
// Ten minutes and some milliseconds, so that the server does not say it in minutes.
const timeout = (n) => 600_001 + n;

const rails = {
  async connected(client, n) {
    for (const sql of [
      "SET client_encoding TO 'unicode'",
      `SET client_min_messages TO '${LEVELS[n % 3]}'`,
      `SET search_path TO w${n}`,
      'SET standard_conforming_strings = on',
      'SET intervalstyle = iso_8601',
      `SET SESSION statement_timeout TO '${timeout(n)}'`,
      `SET SESSION timezone TO '${zone(n)}'`,
      'SHOW max_identifier_length',
      `SELECT t.oid, t.typname, t.typelem, t.typdelim, t.typinput, r.rngtype, t.typtype, t.typbasetype
       FROM pg_type as t LEFT JOIN (SELECT oid AS rngtypid, rngsubtype AS rngtype FROM pg_range
         JOIN pg_type ON pg_type.oid = rngtypid) as r ON t.oid = r.rngtypid
       WHERE t.typname IN ('int2', 'int4', 'int8', 'bool', 'text')`,
    ]) await client.query(sql);
  },
  begin: (client) => client.query('BEGIN'),
  // Prepared by name, as the adapter does with each text that it says.
  ask: (client, text, values = []) => client.query({ name: `a${text.length}`, text, values }),
  own: (n) => ({ intervals: 'iso_8601', messages: LEVELS[n % 3], zone: zone(n) }),
};

const prisma = {
  async connected(client, n) {
    await client.query(`SET search_path = "w${n}"`);
    await client.query(`SET statement_timeout = ${timeout(n)}`);
    await client.query(`SET TIME ZONE '${zone(n)}'`);
  },
  async begin(client) {
    await client.query('BEGIN');
    await client.query('SET TRANSACTION ISOLATION LEVEL READ COMMITTED');
  },
  ask: (client, text, values = []) => client.query({ name: text.startsWith('SELECT') ? 's0' : 's1', text, values }),
  own: (n) => ({ intervals: 'postgres', messages: 'notice', zone: zone(n) }),
};

const sequelize = {
  login: (n) => ({ options: `-c search_path=w${n}`, statement_timeout: timeout(n) }),
  async connected(client, n) {
    const hours = (n % 25) - 12;
    const offset = `${hours < 0 ? '-' : '+'}${String(Math.abs(hours)).padStart(2, '0')}:00`;
    await client.query('SET standard_conforming_strings=on;'
      + `SET client_min_messages TO ${LEVELS[n % 3]};SET TIME ZONE INTERVAL '${offset}' HOUR TO MINUTE;`);
    await client.query('SHOW SERVER_VERSION;');
    await client.query(`WITH ranges AS (SELECT pg_range.rngtypid, pg_type.typname AS rngtypname,
      pg_type.typarray AS rngtyparray, pg_range.rngsubtype FROM pg_range
      LEFT OUTER JOIN pg_type ON pg_type.oid = pg_range.rngtypid)
      SELECT pg_type.typname, pg_type.typtype, pg_type.oid, pg_type.typarray, ranges.rngtypname, ranges.rngtypid
      FROM pg_type LEFT OUTER JOIN ranges ON pg_type.oid = ranges.rngsubtype WHERE (pg_type.typtype IN('b', 'e'))`);
  },
  begin: (client) => client.query('START TRANSACTION;'),
  ask: (client, text, values = []) => client.query(text, values),
  own(n) {
    const hours = (n % 25) - 12;
    const [sign, back] = hours < 0 ? ['-', '+'] : ['+', '-'];
    const two = String(Math.abs(hours)).padStart(2, '0');
    const named = `<${sign}${two}>${back}${two}`;
    return { intervals: 'postgres', messages: LEVELS[n % 3], zone: named };
  },
};

async function work(words, client, n) {
  const always = { name: `w${n}`, path: `w${n}`, application: `worker ${n}`, timeout: `${timeout(n)}ms` };
  const expected = { ...always, ...words.own(n) };
  for (let done = 0; done < TRANSACTIONS; done += 1) {
    await words.begin(client);
    const { rows } = await words.ask(client, LOOK);
    // Prisma quotes the name of its schema, and the server keeps it as it was said.
    rows[0].path = rows[0].path.replaceAll('"', '');
    assert.deepEqual(rows[0], expected, `worker ${n}`);
    await words.ask(client, 'INSERT INTO note (worker) VALUES ($1)', [n]);
    await client.query('COMMIT');
  }
}

const words = { rails, prisma, sequelize }[process.argv[2]];
const clients = await Promise.all([...Array(WORKERS).keys()].map(async (n) => {
  const client = new pg.Client({ application_name: `worker ${n}`, ...(words.login?.(n) ?? {}) });
  await client.connect();
  await words.connected(client, n);
  return client;
}));
await Promise.all(clients.map((client, n) => work(words, client, n)));
await Promise.all(clients.map((client) => client.end()));
