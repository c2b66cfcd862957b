// The pages of the dashboard. All texts come from other people: they only ever become text nodes.
"use strict";

const main = document.getElementById("main");
const said = document.getElementById("said");
const trouble = document.getElementById("trouble");
const STATES = ["ready", "leased", "delayed", "blocked", "dead", "done", "expired", "dropped", "cancelled", "forwarded"];
let stream = null; // the live view of the page that is shown
let turn = 0; // counts the pages: an answer for an earlier one is not shown

// ── elements ──────────────────────────────────────────────────────────────────────────────────────────────────

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null).map((child) => child instanceof Node ? child : String(child)));
  return element;
}

function put(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function link(text, ...path) {
  return make("a", { href: "#/" + path.map(encodeURIComponent).join("/"), class: "text" }, text);
}

function button(text, act, attributes) {
  return make("button", { type: "button", onclick: act, ...attributes }, text);
}

function table(titles, rows, label) {
  const head = titles.map(([title, kind]) => make("th", { scope: "col", class: kind || null }, title));
  const body = rows.map((cells) => make("tr", null, ...cells.map((cell, at) => make("td", { class: titles[at][1] || null }, cell))));
  return make("div", { class: "scroll" }, make("table", { "aria-label": label }, make("thead", null, make("tr", null, ...head)), make("tbody", null, ...body)));
}

// What had the focus keeps it, if it is there again. If not, the next Tab goes on in the page, and not at its top.
function refill(section, ...children) {
  const label = (element) => element.ariaLabel || element.textContent;
  const focused = section.contains(document.activeElement) ? label(document.activeElement) : null;
  section.replaceChildren(...children);
  if (focused !== null) ([...section.querySelectorAll("a, button")].find((one) => label(one) === focused) || main).focus({ preventScroll: true });
}

const number = (value) => typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 1 }) : String(value);
const moment = (seconds) => typeof seconds === "number" ? new Date(seconds * 1000).toLocaleString("sv") : "–";

function age(since, now) {
  if (typeof since !== "number") return "–";
  const seconds = Math.max(0, now - since);
  if (seconds < 120) return Math.round(seconds) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  return seconds < 172800 ? Math.round(seconds / 3600) + " h" : Math.round(seconds / 86400) + " d";
}

// ── charts ────────────────────────────────────────────────────────────────────────────────────────────────────

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// A sample is [ready, leased, delayed, dead, sent_rate, done_rate].
const DEPTH = [["ready", 0], ["leased", 1], ["delayed", 2], ["dead", 3]];
const RATES = [["sent", 4], ["done", 5]];

function draw(picture, samples, series) {
  const top = Math.max(1e-9, ...samples.flatMap((sample) => series.map(([, at]) => sample[at])));
  const step = 100 / Math.max(1, samples.length - 1);
  picture.replaceChildren(...series.map(([name, at]) => svg("polyline", {
    class: "s-" + name,
    points: samples.map((sample, x) => (x * step).toFixed(2) + "," + (29 - 28 * sample[at] / top).toFixed(2)).join(" "),
  })));
}

function chart(title, series) {
  const picture = svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": title });
  const values = series.map(([name]) => make("span", { class: "s-" + name }));
  const figure = make("figure", null, make("figcaption", null, make("strong", null, title), ...values), picture);
  return [figure, (samples) => {
    draw(picture, samples, series);
    const last = samples[samples.length - 1];
    if (last) series.forEach(([name, at], place) => put(values[place], name + " " + number(last[at])));
  }];
}

function charts() {
  const [depth, showDepth] = chart("Messages", DEPTH);
  const [rates, showRates] = chart("Messages a second", RATES);
  return [make("div", { class: "charts" }, depth, rates), (samples) => { showDepth(samples); showRates(samples); }];
}

// ── the daemon ────────────────────────────────────────────────────────────────────────────────────────────────

function say(text, bad) {
  said.className = bad ? "bad" : "";
  said.textContent = text;
}

async function fetched(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The dashboard does not answer. Has `eoq dashboard` ended?");
  }
  const content = (answer.headers.get("content-type") || "").startsWith("application/json") ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(content.error);
  return content;
}

const ask = (path, fields) => fetched(path + "?" + new URLSearchParams(fields));

async function act(action, then) {
  try {
    const answer = await fetched("act", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(action) });
    say(answer.done);
  } catch (error) {
    say(error.message, true);
  }
  if (then) then();
}

function confirmed(question, then) {
  const dialog = document.getElementById("ask");
  put(document.getElementById("question"), question);
  document.getElementById("no").onclick = () => dialog.close();
  document.getElementById("yes").onclick = () => { dialog.close(); then(); };
  dialog.showModal();
  document.getElementById("no").focus();
}

function live(fields, show) {
  const mine = turn;
  stream = new EventSource("events?" + new URLSearchParams(fields));
  stream.onmessage = (event) => {
    if (mine !== turn) return;
    const state = JSON.parse(event.data);
    trouble.hidden = state.trouble === null;
    put(trouble, state.trouble === null ? "" : "The daemon does not answer: " + state.trouble);
    const status = state.status;
    if (status.version) {
      const bad = [...(status.storage_errors || []), status.config_error].filter(Boolean);
      put(document.getElementById("footer"), `eoq ${status.version} · pid ${status.pid} · ${status.database} · started ${moment(status.started_at)}` + (bad.length ? " · " + bad.join(" · ") : ""));
    }
    if (status.version) show(state);
  };
  stream.onerror = () => {
    if (mine !== turn) return;
    trouble.hidden = false;
    put(trouble, "The dashboard does not answer. Has `eoq dashboard` ended, or are too many tabs open?");
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => { if (mine === turn) live(fields, show); }, 3000);
  };
}

// ── all queues ────────────────────────────────────────────────────────────────────────────────────────────────

function queueRow(name) {
  const cells = {};
  const cell = (key, kind) => (cells[key] = make("td", { class: kind || "number" }));
  const picture = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  const tag = make("span", { class: "tag", hidden: true }, "paused");
  const pause = button("", () => act({ do: pause.dataset.do, name }));
  const row = make("tr", null, make("td", { class: "text" }, link(name, "queue", name), " ", tag),
    ...["ready", "leased"].map((key) => cell(key)), ...["delayed", "blocked"].map((key) => cell(key, "number wide")), cell("dead"),
    ...["sent_rate", "done_rate", "age"].map((key) => cell(key, "number wide")), make("td", { class: "wide" }, picture), make("td", null, pause));
  return [row, (queue, now) => {
    for (const key of ["ready", "leased", "delayed", "blocked", "dead", "sent_rate", "done_rate"]) put(cells[key], number(queue[key]));
    cells.dead.classList.toggle("bad", queue.dead > 0);
    put(cells.age, age(queue.oldest_ready, now));
    draw(picture, queue.samples, [["ready", 0], ["dead", 3]]);
    tag.hidden = !queue.paused;
    pause.dataset.do = queue.paused ? "resume" : "pause";
    put(pause, queue.paused ? "Resume" : "Pause");
    pause.setAttribute("aria-label", pause.textContent + " " + name);
  }];
}

function queuesPage(_path, options) {
  const text = options.get("text") || "", order = options.get("order") || "name", page = Number(options.get("page")) || 0;
  const go = (fields) => { location.hash = "#/?" + new URLSearchParams({ text, order, page: 0, ...fields }); };
  const filter = make("input", { name: "text", value: text, maxlength: 128, placeholder: "part of a name", autocomplete: "off" });
  const orders = make("select", { onchange: () => go({ order: orders.value }) },
    ...["name", "ready", "dead", "sent", "done", "age"].map((one) => make("option", { value: one, selected: one === order }, one)));
  const form = make("form", { onsubmit: (event) => { event.preventDefault(); go({ text: filter.value }); } },
    make("label", null, "Filter ", filter), make("label", null, "Order ", orders), make("button", null, "Filter"));
  const [pictures, show] = charts();
  const titles = [["queue"], ["ready", "number"], ["leased", "number"], ["delayed", "number wide"], ["blocked", "number wide"], ["dead", "number"],
    ["sent/s", "number wide"], ["done/s", "number wide"], ["oldest ready", "number wide"], ["ready, dead", "wide"], [""]];
  const list = table(titles, [], "Queues");
  const body = list.querySelector("tbody");
  const count = make("p");
  const before = button("Previous", () => go({ page: page - 1 })), after = button("Next", () => go({ page: page + 1 }));
  main.replaceChildren(make("h1", null, "Queues"), pictures, make("h2", null, "All queues"), form, list, count, make("div", { class: "buttons" }, before, after));
  const rows = new Map();
  live({ text, order, page }, (state) => {
    show(state.samples);
    const there = state.queues.map((queue) => {
      if (!rows.has(queue.name)) rows.set(queue.name, queueRow(queue.name));
      const [row, fill] = rows.get(queue.name);
      fill(queue, state.status.now);
      return row;
    });
    const names = new Set(state.queues.map((queue) => queue.name));
    for (const name of rows.keys()) if (!names.has(name)) rows.delete(name);
    // Rows that stay where they are keep the focus.
    if (there.length !== body.children.length || there.some((row, at) => body.children[at] !== row)) body.replaceChildren(...there);
    const first = page * 25;
    put(count, state.count ? `${number(first + (there.length ? 1 : 0))} to ${number(first + there.length)} of ${number(state.count)} queues` : "There is no such queue.");
    before.disabled = page === 0;
    after.disabled = first + there.length >= state.count;
  });
}

// ── one queue ─────────────────────────────────────────────────────────────────────────────────────────────────

function queuePage([, name], options) {
  const state = options.get("state") || "ready", contains = options.get("contains") || "", mine = turn;
  const go = (fields) => { location.hash = "#/queue/" + encodeURIComponent(name) + "?" + new URLSearchParams({ state, contains, ...fields }); };
  const [pictures, show] = charts();
  const pause = button("Pause", () => act({ do: pause.dataset.do, name }));
  const facts = make("p");
  const states = make("select", { onchange: () => go({ state: states.value }) }, ...STATES.map((one) => make("option", { value: one, selected: one === state }, one)));
  const text = make("input", { value: contains, maxlength: 200, autocomplete: "off", placeholder: "text in the body" });
  const form = make("form", { onsubmit: (event) => { event.preventDefault(); go({ contains: text.value }); } },
    make("label", null, "State ", states), make("label", null, "Body ", text), make("button", null, "Search"));
  const messages = make("section", { "aria-label": "Messages" });
  main.replaceChildren(make("h1", null, name), make("div", { class: "buttons" }, pause), facts, pictures, make("h2", null, "Messages"), form, messages);

  let known = "", loading = false, notBefore = 0;
  const load = async () => {
    if (loading) return;
    loading = true;
    const began = performance.now();
    try {
      const found = await ask("messages", contains ? { queue: name, state, contains } : { queue: name, state });
      if (mine === turn) refill(messages, ...messageList(name, state, contains, found, load));
    } catch (error) {
      if (mine === turn) say(error.message, true);
    }
    loading = false;
    notBefore = performance.now() + 25 * (performance.now() - began);
  };
  load();
  live({ queue: name }, (whole) => {
    const [queue] = whole.queues;
    pause.disabled = !queue;
    put(facts, queue ? `${queue.paused ? "Paused. " : ""}${number(queue.consumers)} consumers. Oldest ready message: ${age(queue.oldest_ready, whole.status.now)}. ` +
      `Redelivered: ${number(queue.totals.retried)}. Became dead letters: ${number(queue.totals.dead)}.` : "There is no such queue.");
    if (!queue) return;
    show(queue.samples);
    pause.dataset.do = queue.paused ? "resume" : "pause";
    put(pause, queue.paused ? "Resume" : "Pause");
    // A list that was searched, or in which something has the focus, stays as it is.
    const now = JSON.stringify([queue.totals, queue.ready, queue.leased, queue.delayed, queue.dead]);
    if (known && now !== known && !contains && performance.now() > notBefore && !messages.contains(document.activeElement)) load();
    known = now;
  });
}

function messageList(queue, state, contains, found, load) {
  const rows = found.messages;
  if (!rows.length) return [make("p", null, contains ? "None found." : "None.")];
  const dead = state === "dead";
  const one = (message) => [
    link(message.id, "message", queue, message.id),
    make("span", { class: "text" }, message.body !== undefined ? message.body : message.body_base64 !== undefined ? "base64: " + message.body_base64 : ""),
    number(message.attempts ?? "–"),
    moment(message.failed_at ?? message.due_at ?? message.settled_at ?? message.enqueued_at),
    make("span", { class: "text error" }, message.error ?? ""),
    ...(dead ? [deadButtons(queue, message.id, load)] : []),
  ];
  const titles = [["id"], ["body", "text"], ["attempts", "number wide"], [dead ? "failed" : "time", "wide"], ["error", "text"], ...(dead ? [["", ""]] : [])];
  const parts = [table(titles, rows.map(one), "Messages")];
  if (rows.length >= found.most) parts.push(make("p", null, `The first ${found.most} are shown.`));
  if (dead && !contains) {
    const seen = { name: queue, seen_at: found.seen_at };
    parts.push(make("div", { class: "buttons" },
      button("Redrive all", () => act({ do: "redrive", ...seen }, load)),
      button("Drop all", () => confirmed(`Drop all dead letters of ${queue} that had failed by ${moment(found.seen_at)}? This cannot be undone.`,
        () => act({ do: "drop", confirmed: true, ...seen }, load)), { class: "danger" })));
  }
  return parts;
}

function deadButtons(queue, id, then) {
  return make("div", { class: "buttons" },
    button("Redrive", () => act({ do: "redrive", name: queue, ids: [id] }, then), { "aria-label": "Redrive " + id }),
    button("Drop", () => confirmed(`Drop the dead letter ${id} of ${queue}? This cannot be undone.`,
      () => act({ do: "drop", name: queue, ids: [id], confirmed: true }, then)), { class: "danger", "aria-label": "Drop " + id }));
}

// ── one message, a search, the schedules ──────────────────────────────────────────────────────────────────────

async function messagePage([, queue, id]) {
  const mine = turn;
  main.replaceChildren(make("h1", null, id), make("p", null, "In the queue ", link(queue, "queue", queue)));
  live({ queue }, () => {});
  let found;
  try {
    found = await ask("message", { queue, id });
  } catch (error) {
    if (mine === turn) say(error.message, true);
    return;
  }
  if (mine !== turn) return;
  const message = found.message, facts = make("dl");
  for (const [key, value] of Object.entries(message)) {
    if (["id", "queue", "body", "body_base64", "result", "result_base64", "history"].includes(key)) continue;
    const shown = key.endsWith("_at") ? moment(value) : typeof value === "object" ? JSON.stringify(value) : value;
    facts.append(make("dt", null, key), make("dd", { class: key === "error" ? "text error" : "text" }, shown));
  }
  main.append(make("h2", null, "Why it is where it is"), make("ul", { id: "why" }, ...found.why.map((reason) => make("li", { class: "text" }, reason.text))));
  if (message.state === "dead") main.append(deadButtons(queue, id, route));
  main.append(make("h2", null, "Facts"), facts);
  if (message.history && message.history.length) {
    const rows = message.history.map((one) => [number(one.delivery), moment(one.delivered_at), one.consumer ?? "–", moment(one.failed_at), make("span", { class: "error" }, one.error ?? "")]);
    main.append(make("h2", null, "Deliveries"), table([["no.", "number"], ["delivered"], ["consumer", "text"], ["failed"], ["error", "text"]], rows, "Deliveries"));
  }
  for (const key of ["body", "body_base64", "result", "result_base64"]) {
    if (message[key] === undefined) continue;
    main.append(make("h2", null, key.replace("_", ", ")), make("pre", { tabindex: 0 }, message[key]));
    if (message[key + "_cut"]) main.append(make("p", null, `Only the beginning is shown, of ${number(message[key + "_cut"])} characters.`));
  }
}

async function searchPage(_path, options) {
  const id = options.get("id") || "", queue = options.get("queue") || "", mine = turn;
  const under = make("p", { role: "status" }, "Searching the queues…");
  main.replaceChildren(make("h1", null, "Search"), make("p", { class: "text" }, id), under);
  live({ text: "", order: "name", page: 0 }, () => {});
  try {
    const answer = await ask("search", queue ? { id, queue } : { id });
    if (mine !== turn) return;
    const rows = answer.found.map((one) => [link(one.id, "message", one.queue, one.id), link(one.queue, "queue", one.queue), one.state]);
    under.replaceWith(rows.length ? table([["id"], ["queue"], ["state"]], rows, "Found") : make("p", null, "No queue that you may read knows this id."));
  } catch (error) {
    if (mine !== turn) return;
    under.remove();
    say(error.message, true);
  }
}

async function schedulesPage(_path, options) {
  const text = options.get("text") || "", mine = turn;
  const filter = make("input", { value: text, maxlength: 128, placeholder: "part of a name", autocomplete: "off" });
  const list = make("section", { "aria-label": "Schedules" });
  main.replaceChildren(make("h1", null, "Schedules"),
    make("form", { onsubmit: (event) => { event.preventDefault(); location.hash = "#/schedules?" + new URLSearchParams({ text: filter.value }); } },
      make("label", null, "Filter ", filter), make("button", null, "Filter")), list);
  live({ text: "", order: "name", page: 0 }, () => {});
  const load = async () => {
    try {
      const found = await ask("schedules", { text });
      if (mine !== turn) return;
      const rows = found.schedules.map((one) => [one.name, link(one.queue, "queue", one.queue), (one.cron ? one.cron + " " + one.timezone : "every " + number(one.every) + " s") + (one.paused ? ", paused" : ""),
        moment(one.next_at), moment(one.last_at), make("span", { class: "error" }, one.error ?? ""),
        make("div", { class: "buttons" },
          button(one.paused ? "Resume" : "Pause", () => act({ do: one.paused ? "schedule-resume" : "schedule-pause", name: one.name }, load), { "aria-label": (one.paused ? "Resume " : "Pause ") + one.name }),
          button("Run now", () => act({ do: "schedule-run", name: one.name, id: crypto.randomUUID() }, load), { "aria-label": "Run " + one.name + " now" }))]);
      refill(list, rows.length ? table([["name", "text"], ["queue"], ["occurs"], ["next"], ["last", "wide"], ["error", "text wide"], [""]], rows, "Schedules") : make("p", null, "There are none."));
      if (found.count > found.schedules.length) list.append(make("p", null, `The first ${found.most} of ${number(found.count)} are shown.`));
    } catch (error) {
      if (mine === turn) say(error.message, true);
    }
  };
  await load();
}

// ── which page ────────────────────────────────────────────────────────────────────────────────────────────────

const PAGES = { "": queuesPage, queue: queuePage, message: messagePage, search: searchPage, schedules: schedulesPage };

function route() {
  if (location.hash && !location.hash.startsWith("#/")) return; // a place on this page
  turn += 1;
  if (stream) stream.close();
  const [path, query] = location.hash.slice(2).split("?");
  let parts;
  try {
    parts = path.split("/").map(decodeURIComponent);
  } catch {
    parts = [""];
  }
  for (const one of document.querySelectorAll("nav a")) {
    if (one.getAttribute("href") === "#/" + parts[0]) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  document.title = (parts[1] || parts[0] || "Queues") + " · eoq";
  (PAGES[parts[0]] || queuesPage)(parts, new URLSearchParams(query || ""));
}

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = "#/search?" + new URLSearchParams(new FormData(event.target));
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.querySelector("#search input").focus();
  }
});
window.addEventListener("hashchange", () => { say(""); route(); main.focus(); });
route();
