// Delivers one message of `eoq prove` to a worker in Node.js that receives and acks by itself, over a real daemon.
//
//   usage: node --import deliver.mjs WORKER --socket SOCKET …       as the command of `eoq prove`
//
// It is loaded before the worker, and makes a command of it, as `eoq work` would run one: it sends the message of this run
// to the daemon, and ends the process when the daemon has its outcome. It prints the result that the daemon has stored.
// The runs before have left the same message there, settled or not: it begins with an empty queue.

import { readFileSync } from "node:fs";
import { createConnection } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const STATUS = { done: 0, dead: 100 };

const { EOQ_QUEUE: queue, EOQ_ID: id } = process.env;
const socket = createConnection(process.argv[process.argv.indexOf("--socket") + 1]);
const lines = createInterface({ input: socket })[Symbol.asyncIterator]();

async function ask(request) {
  socket.write(JSON.stringify({ queue, ...request }) + "\n");
  return JSON.parse((await lines.next()).value);
}

/** End the process as the message has ended: 0 where it was acked, 100 where it was rejected. */
async function follow() {
  const { outcome, result, error } = await ask({ op: "result", id, wait: 60 });
  process.stdout.write(result ?? "");
  process.stderr.write(error ?? "");
  process.exit(STATUS[outcome] ?? 1);
}

do {
  await ask({ op: "purge" });
  await ask({ op: "drop", all: true });
  await sleep(1); // until the daemon has seen that the run before was killed: what that one had leased waits again
} while (!(await ask({ op: "delete_queue", forget_ids: true })).ok);
await ask({ op: "send", id, body: readFileSync(0, "utf8") });
console.log = () => {}; // what the worker says may come before the end or not; the result is compared instead
follow();
socket.unref(); // a worker that fails ends the process
