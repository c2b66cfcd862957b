// Books payments in a ledger with Node.js, each exactly once. It uses no package: the wire protocol of PROTOCOL.md over
// the daemon's socket, and SQLite from Node itself (`node:sqlite`, in Node 22.13 and later).
//
//   eoq send payments '{"account": "carol", "cents": 900}' --id ledger-3
//   node examples/ledger_worker.mjs --db ledger.db --until-empty
//
// The booking, the message's id and its result are committed in one transaction of the ledger. Then the message is acked.
// Kill the worker or the daemon at any moment, and start it again: each payment is still booked once. The tables are those
// of PROTOCOL.md, so a worker in Python (`eoq.Inbox`) and this one can share one ledger.

import { createConnection } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { DatabaseSync } from "node:sqlite";
import { parseArgs } from "node:util";

const TABLES = `
  create table if not exists eoq_processed (
    queue text not null, id text not null, source text, seq integer not null, digest blob, processed_at real not null,
    result blob, primary key (queue, id)
  ) without rowid;
  create table if not exists account (name text primary key, cents integer not null) strict;
  create table if not exists booking (
    number integer primary key,
    account text not null,
    cents integer not null,
    payment text not null -- the message's id; not unique, so that a double booking would be visible
  ) strict;
`;
const BROKEN_RULE = 19; // SQLITE_CONSTRAINT: an error of this message; the other errors of SQLite are of the file
const FORGET_EVERY = 3600; // seconds between two deletions of old ids
const AWAY = new Set(["ENOENT", "ECONNREFUSED", "ECONNRESET", "EPIPE", "CLOSED"]);
const LATER = new Set(["overloaded", "storage_full", "storage_failed"]);

/** A message that can never be handled. It becomes a dead letter. */
class Reject extends Error {}

/** An error that the daemon has answered with. */
class Refused extends Error {
  constructor({ code, message }) {
    super(`${message} (${code})`);
    this.code = code;
  }
}

// ── the effect ───────────────────────────────────────────────────────────────────────────────────────────────

/** Book one payment in the open transaction. Return the result of the message. */
function book(db, message, body) {
  let payment;
  try {
    payment = JSON.parse(body.toString());
  } catch (error) {
    throw new Reject(`no payment: ${error.message}`);
  }
  const { account, cents } = payment ?? {};
  if (typeof account !== "string" || account === "" || !Number.isSafeInteger(cents)) {
    throw new Reject('no payment: it looks like {"account": "alice", "cents": 500}');
  }
  db.prepare("insert into booking (account, cents, payment) values (?, ?, ?)").run(account, cents, message.id);
  const row = db
    .prepare(
      "insert into account values (?, ?) on conflict (name) do update set cents = cents + excluded.cents returning cents",
    )
    .get(account, cents);
  return `${account} has ${row.cents} cents`;
}

/** Commit the effect, the message's id and its result in one transaction. If the id is known, return the stored result. */
function processOnce(db, queue, message, source) {
  const body = "body_base64" in message ? Buffer.from(message.body_base64, "base64") : Buffer.from(message.body);
  const digest = message.digest === undefined ? null : Buffer.from(message.digest, "hex");
  const now = Date.now() / 1000;
  db.exec("begin immediate");
  try {
    const found = db.prepare("select result, digest from eoq_processed where queue = ? and id = ?").get(queue, message.id);
    let result = found?.result ?? null;
    if (found) {
      if (digest && found.digest && !digest.equals(found.digest)) {
        throw new Reject("the id was processed with other content: use a new id");
      }
      db.prepare(
        "update eoq_processed set seq = max(seq, ?), processed_at = ? where queue = ? and id = ?",
      ).run(message.seq, now, queue, message.id);
    } else {
      result = Buffer.from(book(db, message, body));
      db.prepare("insert into eoq_processed values (?, ?, ?, ?, ?, ?, ?)").run(
        queue, message.id, source, message.seq, digest, now, result,
      );
    }
    db.exec("commit");
    return result;
  } catch (error) {
    try {
      db.exec("rollback");
    } catch {
      // SQLite has rolled back by itself.
    }
    throw error;
  }
}

/** Delete the ids of settled messages that are older than the retention of their queue. */
function forget(db, queue, { watermark, retention, source }) {
  db.prepare(
    "delete from eoq_processed where queue = ? and seq < ? and processed_at < ? and (source is null or source = ?)",
  ).run(queue, watermark, Date.now() / 1000 - retention, source);
}

// ── the connection ───────────────────────────────────────────────────────────────────────────────────────────

/** A connection to the daemon. It has one request under way at a time, so that no request needs a `rid`. */
class Connection {
  static async open(path) {
    const socket = createConnection(path);
    await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    return new Connection(socket);
  }

  constructor(socket) {
    this.socket = socket;
    this.lines = readLines(socket);
  }

  /** Send one request. Return the reply, or throw `Refused`. */
  async ask(request) {
    this.socket.write(JSON.stringify(request) + "\n");
    const { value, done } = await this.lines.next();
    if (done) throw Object.assign(new Error("the daemon has closed the connection"), { code: "CLOSED" });
    const reply = JSON.parse(value);
    if (!reply.ok) throw new Refused(reply.error);
    return reply;
  }

  /** Send a request about a receipt. Say it where the lease is lost: the message is delivered again. */
  async settle(message, request) {
    try {
      await this.ask({ ...request, receipt: message.receipt });
    } catch (error) {
      if (error.code !== "lease_lost") throw error;
      console.error(`${message.id}: the lease was lost; the message is delivered again`);
    }
  }

  close() {
    this.socket.destroy();
  }
}

/** Yield the lines of a socket. A line ends with a line feed only: `node:readline` would also end it at a U+2028. */
async function* readLines(socket) {
  let parts = [];
  for await (const chunk of socket) {
    let begin = 0;
    for (let end; (end = chunk.indexOf(0x0a, begin)) >= 0; begin = end + 1) {
      yield Buffer.concat([...parts, chunk.subarray(begin, end)]).toString();
      parts = [];
    }
    parts.push(chunk.subarray(begin));
  }
}

// ── the worker ───────────────────────────────────────────────────────────────────────────────────────────────

/** Handle one message, and settle it. Throw where the file cannot be used: then the next message would fail as well. */
async function handle(connection, db, queue, message, source) {
  let result;
  try {
    result = processOnce(db, queue, message, source);
  } catch (error) {
    const text = error.message.slice(0, 1000);
    if (error instanceof Reject) {
      await connection.settle(message, { op: "reject", error: text });
    } else if (error.code === "ERR_SQLITE_ERROR" && (error.errcode & 0xff) !== BROKEN_RULE) {
      await connection.ask({ op: "release", receipts: [message.receipt] }); // this uses no attempt
      throw error;
    } else {
      await connection.settle(message, { op: "nack", error: text });
    }
    console.error(`${message.id}: ${text}`);
    return;
  }
  const stored = result === null ? {} : { result_base64: Buffer.from(result).toString("base64") };
  await connection.settle(message, { op: "ack", ...stored });
  console.log(`${message.id}: ${result === null ? "" : Buffer.from(result)}`);
}

/** Handle the messages of one connection, until it breaks, or until there are no more. */
async function consume(connection, db, queue, untilEmpty) {
  let [wall, began] = [Date.now(), performance.now()];
  while (true) {
    // A bound lease ends with the connection: the message of a killed worker is delivered again at once.
    const got = await connection.ask({ op: "receive", queue, wait: untilEmpty ? 1 : 20, bound: true });
    for (const message of got.messages) await handle(connection, db, queue, message, got.source);
    if (untilEmpty && got.messages.length === 0) return;
    const passed = performance.now() - began;
    if (got.messages.length > 0 && passed > FORGET_EVERY * 1000) {
      // If the clock was set meanwhile, it is wrong or was wrong. Then nothing is forgotten this time.
      if (Math.abs(Date.now() - wall - passed) < 60_000) forget(db, queue, got);
      [wall, began] = [Date.now(), performance.now()];
    }
  }
}

/** Connect, handle messages, and connect again when the daemon was away for a moment. */
async function work(path, db, queue, untilEmpty) {
  let reached = false;
  while (true) {
    let connection;
    try {
      connection = await Connection.open(path);
      reached = true;
      return await consume(connection, db, queue, untilEmpty);
    } catch (error) {
      if (!(reached && AWAY.has(error.code)) && !LATER.has(error.code)) throw error;
      console.error(`waiting for the daemon: ${error.message}`);
      await sleep(200); // the daemon delivers again what was not settled
    } finally {
      connection?.close();
    }
  }
}

const folder = process.env.XDG_RUNTIME_DIR || `/run/user/${process.getuid()}`;
const { values } = parseArgs({
  options: {
    db: { type: "string", default: "ledger.db" },
    queue: { type: "string", default: "payments" },
    socket: { type: "string", default: process.env.EOQ_SOCKET || `${folder}/eoq/eoq.sock` },
    "until-empty": { type: "boolean", default: false },
  },
});
const db = new DatabaseSync(values.db);
db.exec("pragma busy_timeout = 30000");
db.exec("pragma synchronous = extra"); // with a rollback journal, `full` syncs too little
db.exec(TABLES);
try {
  await work(values.socket, db, values.queue, values["until-empty"]);
} catch (error) {
  console.error(`ledger_worker: ${error.message}; \`eoq status\` shows the daemon and its socket`);
  process.exitCode = error instanceof Refused ? 65 : ["ENOENT", "ECONNREFUSED"].includes(error.code) ? 69 : 74;
}
