// The live page of servd's admin port. No library, nothing from elsewhere. Whatever an application is called or says is put into the
// page as text: there is no place where it could become markup.

const SPAN_S = 900;
const RETRY_MS = 3000;
const READ_LIMIT_MS = 60000;
// a beat comes every 15 s: without one nobody is at the other end
const SILENCE_MS = 45000;
const EVENTS_SHOWN = 150;
const REPLICAS_SHOWN = 100;
const DIFF_LINES = 4000;
// the clocks of two hosts may differ by so much, and nobody sees it
const CLOCKS_MS = 3000;
// by so much more or less than time has passed a clock goes on that was set
const CLOCK_STEP_S = 2;

const LOOKS = {
  RUNNING: "good", HEALTHY: "good", ran: "good",
  DEPLOYING: "busy", UPDATING: "busy", STARTING: "busy", RECOVERING: "busy", UPSCALING: "busy", DOWNSCALING: "busy",
  DEPLOY_FAILED: "bad", UNHEALTHY: "bad", failed: "bad",
};

const $ = (id) => document.getElementById(id);

// what the server told, by its keys: see servd/page/rows.py
let rows = new Map();
let source = null;
let heardAt = Date.now();
let edition = null;
let isDrawing = false;
let revisions = { revision: 0, revisions: [] };
const opened = new Set();
const wholeTables = new Set();
const happened = [];
const histories = new Map();
let hasHistory = true;
let hasChosen = false;

// ---- small things

function el(name, about = {}, ...inside) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(about)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...inside);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function set(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// the children of a parent are these, in this order; they are made when they are new
function keep(parent, keys, make) {
  parent.kept ??= new Map();
  const focused = document.activeElement;
  const wanted = new Set(keys);
  for (const [key, node] of parent.kept) {
    if (!wanted.has(key)) {
      node.remove();
      parent.kept.delete(key);
    }
  }
  let next = parent.firstChild;
  for (const key of keys) {
    let node = parent.kept.get(key);
    if (!node) parent.kept.set(key, (node = make(key)));
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
  // what is moved loses it
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

const decimal = (value, digits = 1) => (value === null || value === undefined ? "" : value.toFixed(digits));
const milliseconds = (value) => (value === null || value === undefined ? "" : `${value < 10 ? decimal(value) : Math.round(value)} ms`);
const percent = (share) => (share === null || share === undefined ? "" : `${Math.round(share * 100)} %`);
const count = (value) => (value === null || value === undefined ? "" : String(value));

function bytes(value) {
  if (value === null || value === undefined) return "";
  const mib = value / 1048576;
  return mib >= 10240 ? `${decimal(mib / 1024)} GiB` : mib >= 10 ? `${Math.round(mib)} MiB` : `${decimal(mib)} MiB`;
}

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  return s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

function moment(at) {
  const date = new Date(at * 1000);
  const clock = date.toLocaleTimeString([], { hour12: false });
  return date.toDateString() === new Date().toDateString() ? clock : `${date.toLocaleDateString()} ${clock}`;
}

// a new day, and a clock that was set, change what is shown of a time
function date(node, at) {
  const known = `${at} ${new Date().toDateString()}`;
  if (node.known === known) return;
  node.known = known;
  if (node.localName === "time") set(node, "datetime", new Date(at * 1000).toISOString());
  say(node, moment(at));
}

const deployment = (row) => [row.app, row.name ?? row.deployment].filter(Boolean).join("/");
const named = (app) => app || "(no name)";
const part = (text) => encodeURIComponent(text);

// the daemon's clock, by which everything happened: that of this host may be another
let aheadMs = 0;
const wallTime = () => (Date.now() + aheadMs) / 1000;

function hearClock(date) {
  const found = Date.parse(date) - Date.now();
  // of a date there are only seconds
  if (Math.abs(found - aheadMs) > CLOCKS_MS) aheadMs = Math.abs(found) > CLOCKS_MS ? found : 0;
}

async function api(method, path, body, headers = {}) {
  // "." and ".." are names too, of which a browser makes another path
  if (new URL(path, location.href).pathname !== path.split("?")[0]) throw new Error("No browser can ask for what has this name; servd on the command line can.");
  // what only reads is asked for anew: a connection may be dead that nobody has closed
  const isRead = method === "GET" || method === "HEAD";
  const answer = await fetch(path, {
    method,
    signal: isRead ? AbortSignal.timeout(READ_LIMIT_MS) : undefined,
    headers: body === undefined ? headers : { ...headers, "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    redirect: "manual",
  }).catch((error) => {
    throw error.name === "TimeoutError" ? new Error(`no answer within ${READ_LIMIT_MS / 1000} s`) : error;
  });
  hearClock(answer.headers.get("date"));
  const text = await answer.text();
  // the session is over: the page has the form
  if (answer.status === 401) location.assign("/");
  if (!answer.ok) {
    const error = new Error(text || `the daemon answered ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return text;
}

const read = async (path) => JSON.parse(await api("GET", path));

// ---- tables

// columns: [label, kind]; kind "number", "name", "text" or ""
function table(caption, columns) {
  const head = el("tr", { role: "row" });
  // of a column of buttons: who hears the table needs a name for it
  const name = (label) => label || el("span", { class: "hidden-text" }, "Actions");
  for (const [label, kind] of columns) head.append(el("th", { role: "columnheader", scope: "col", class: kind }, name(label)));
  const body = el("tbody", { role: "rowgroup" });
  const node = el("table", { class: "wide", role: "table" }, el("caption", { class: "hidden-text" }, caption));
  node.append(el("thead", { role: "rowgroup" }, head), body);
  node.body = body;
  return node;
}

function line(columns) {
  const node = el("tr", { role: "row" });
  for (const [label, kind] of columns) node.append(el("td", { role: "cell", class: kind, "data-label": label || null }));
  return node;
}

function fill(row, texts) {
  texts.forEach((text, index) => text === null || say(row.children[index], text));
}

function state(word) {
  const node = el("span");
  look(node, word);
  return node;
}

function look(node, word) {
  say(node, word);
  set(node, "class", `state ${LOOKS[word] ?? "idle"}`);
}

// ---- applications

const FIGURES = [
  ["Waiting", "number", (row) => count(row.waiting)],
  ["Requests/s", "number", (row) => decimal(row.requests_per_s)],
  ["p50", "number", (row) => milliseconds(row.p50_ms)],
  ["p95", "number", (row) => milliseconds(row.p95_ms)],
  ["p99", "number", (row) => milliseconds(row.p99_ms)],
  ["Errors/min", "number", (row) => count(row.errors)],
  ["Memory", "number", (row) => bytes(row.memory_bytes)],
  ["CPU", "number", (row) => percent(row.cpu_share)],
];
const OF_DEPLOYMENT = [["Restarts", "number", (row) => count(row.restarts)]];
const OF_REPLICA = [
  ["Files", "number", (row) => count(row.descriptors)],
  ["Threads", "number", (row) => count(row.threads)],
];

function figures(further) {
  const found = [...rows].some(([key, row]) => key.startsWith("d/") && "requests_per_s" in row);
  return found ? [...FIGURES, ...further] : [];
}

function grouped() {
  const apps = new Map();
  for (const [key, row] of rows) if (key.startsWith("a/")) apps.set(row.name, { key, row, deployments: new Map() });
  for (const [key, row] of rows) {
    if (key.startsWith("d/")) apps.get(row.app)?.deployments.set(row.name, { key, row, replicas: [] });
  }
  for (const [key, row] of rows) {
    if (key.startsWith("r/")) apps.get(row.app)?.deployments.get(row.deployment)?.replicas.push({ key, row });
  }
  return apps;
}

function drawApplications() {
  const apps = grouped();
  const byKey = new Map([...apps.values()].map((app) => [app.key, app]));
  const columns = figures(OF_DEPLOYMENT);
  const kind = columns.length ? "figures" : "plain";
  const keys = [...byKey.keys()].map((key) => `${kind} ${key}`);
  const key = (name) => name.slice(kind.length + 1);
  keep($("apps"), keys, (name) => applicationNode(byKey.get(key(name)), columns));
  for (const name of keys) drawApplication($("apps").kept.get(name), byKey.get(key(name)), columns);
  const none = $("tables");
  none.hidden = apps.size > 0;
  if (!apps.size) {
    const text = rows.get("i")?.running ? "No application is deployed." : "Serve does not run: nothing is deployed.";
    if (none.textContent !== text) none.replaceChildren(el("p", {}, text));
  }
}

function applicationNode(app, figureColumns) {
  const { name } = app.row;
  const columns = [["Deployment", "name"], ["Status", ""], ["Replicas", "number"], ["Running", "number"], ...figureColumns, ["", ""]];
  const node = el("section", { class: "app", "aria-label": `Application ${named(name)}`, "data-app": name });
  const parts = {
    columns,
    state: state(app.row.status),
    route: el("span", { class: "dim" }),
    message: el("div", { class: "message" }),
    table: table(`Deployments of ${named(name)}`, columns),
  };
  const remove = el("button", { type: "button", class: "danger", onclick: () => askDelete(name), "aria-label": `Delete application ${named(name)}…` }, "Delete…");
  node.append(
    el("div", { class: "app-head" }, el("h3", {}, named(name)), parts.state, parts.route, el("div", { class: "buttons" }, remove)),
    parts.message,
    parts.table,
  );
  node.parts = parts;
  return node;
}

function drawApplication(node, app, figureColumns) {
  const { parts } = node;
  look(parts.state, app.row.status);
  say(parts.route, `${app.row.route ?? "no route"} · deployed ${moment(app.row.at)}`);
  say(parts.message, app.row.message);
  const keys = [];
  const byKey = new Map();
  for (const one of app.deployments.values()) {
    byKey.set(one.key, one);
    keys.push(`row ${one.key}`);
    if (opened.has(one.key)) keys.push(`all ${one.key}`);
  }
  const body = parts.table.body;
  keep(body, keys, (key) => {
    const one = byKey.get(key.slice(4));
    return key.startsWith("row ") ? deploymentRow(one, parts.columns) : deploymentDetail(one, parts.columns.length);
  });
  for (const [key, one] of byKey) {
    drawDeployment(body.kept.get(`row ${key}`), one, figureColumns);
    if (opened.has(key)) drawDetail(body.kept.get(`all ${key}`), one);
  }
}

function deploymentRow(one, columns) {
  const node = line(columns);
  const { row, key } = one;
  node.toggle = el("button", { type: "button", class: "plain toggle", "aria-expanded": "false", onclick: () => toggle(key) }, row.name);
  node.children[0].append(node.toggle);
  node.state = state(row.status);
  node.children[1].append(node.state);
  const scale = el("button", { type: "button", "aria-label": `Scale ${deployment(row)}…`, onclick: () => askScale(key) }, "Scale…");
  node.lastChild.append(el("div", { class: "buttons" }, scale));
  return node;
}

function toggle(key) {
  hasChosen = true;
  opened.has(key) ? opened.delete(key) : opened.add(key);
  draw();
  readHistories();
}

function drawDeployment(node, one, figureColumns) {
  const { row } = one;
  set(node.toggle, "aria-expanded", String(opened.has(one.key)));
  look(node.state, row.status);
  fill(node, [null, null, `${row.running} of ${row.wanted}`, String(row.ongoing), ...figureColumns.map(([, , text]) => text(row))]);
}

const PLOTS = [
  ["Requests/s", (value) => decimal(value), ["requests_per_s"]],
  ["Latency p50, p95", milliseconds, ["p50_ms", "p95_ms"]],
  ["Errors/s", (value) => decimal(value, 2), ["errors_per_s"]],
  ["Replicas running, wanted", (value) => String(value), ["running_replicas", "wanted_replicas"]],
  ["Memory", bytes, ["memory_bytes"]],
  ["CPU", percent, ["cpu_share"]],
];

function deploymentDetail(one, width) {
  const parts = {
    message: el("div", { class: "message" }),
    scaling: el("p", { class: "dim" }),
    plots: el("div", { class: "plots" }),
    replicas: el("div"),
    more: el("button", { type: "button", hidden: true, onclick: () => (wholeTables.add(one.key), draw()) }),
    dead: el("div"),
  };
  parts.drawings = PLOTS.map(plotNode);
  parts.plots.append(...parts.drawings.map((drawing) => drawing.node));
  const detail = el("div", { class: "detail", role: "group", "aria-label": `Details of ${deployment(one.row)}` }, ...Object.values(parts).filter((node) => node instanceof Node));
  const node = el("tr", { "data-detail": true, role: "row" }, el("td", { role: "cell", colspan: width }, detail));
  node.parts = parts;
  return node;
}

function drawDetail(node, one) {
  const { parts } = node;
  const { row } = one;
  say(parts.message, row.message);
  const last = row.decisions.at(-1);
  const how = row.autoscaled ? "Autoscaled" : "";
  say(parts.scaling, last ? `${how || "Was autoscaled"}: ${last[1]} to ${last[2]} replicas at ${moment(last[0])}: ${last[3]}` : how);
  parts.scaling.hidden = !parts.scaling.textContent;
  const history = histories.get(row.app)?.deployments.get(row.full);
  parts.plots.hidden = !history;
  if (history) parts.drawings.forEach((drawing) => drawing.draw(history));
  drawReplicas(parts, one);
  drawDead(parts.dead, one);
}

function drawReplicas(parts, one) {
  const figureColumns = figures(OF_REPLICA);
  const columns = [["Replica", "name"], ["State", ""], ["Pid", "number"], ["Age", "number"], ["Running", "number"], ...figureColumns, ["", ""]];
  const kind = String(figureColumns.length);
  keep(parts.replicas, one.replicas.length ? [kind] : [], () => table(`Replicas of ${deployment(one.row)}`, columns));
  const node = parts.replicas.kept.get(kind);
  const shown = wholeTables.has(one.key) ? one.replicas : one.replicas.slice(0, REPLICAS_SHOWN);
  parts.more.hidden = shown.length === one.replicas.length;
  say(parts.more, `Show all ${one.replicas.length} replicas`);
  if (!node) return;
  const byKey = new Map(shown.map((replica) => [replica.key, replica.row]));
  keep(node.body, [...byKey.keys()], (key) => replicaRow(key, byKey.get(key), columns));
  const now = wallTime();
  for (const [key, row] of byKey) {
    const line = node.body.kept.get(key);
    look(line.state, row.state);
    say(line.message, row.message);
    fill(line, [null, null, count(row.pid), span(now - row.at), String(row.ongoing), ...figureColumns.map(([, , text]) => text(row))]);
  }
}

function replicaRow(key, row, columns) {
  const id = key.slice(2);
  const node = line(columns);
  node.state = state(row.state);
  node.message = el("div", { class: "message" });
  node.children[0].append(el("span", { title: row.start === "spawn" ? "started as a fresh process" : "forked" }, id), node.message);
  node.children[1].append(node.state);
  node.lastChild.append(
    el("div", { class: "buttons" },
      el("button", { type: "button", "aria-label": `Stack of ${id}`, onclick: () => showStack(id) }, "Stack"),
      el("button", { type: "button", "aria-label": `Logs of ${id}`, onclick: () => showLogsOf(row, id) }, "Logs")),
  );
  return node;
}

const DEAD = [["Gone", "name"], ["When", ""], ["How", ""], ["Open requests", "number"], ["Why", "text"], ["", ""]];

function drawDead(parent, one) {
  const dead = one.row.dead;
  keep(parent, dead.length ? ["head", "table"] : [], (key) => (key === "head" ? el("h4", {}, "Replicas that are gone") : table("Replicas that are gone", DEAD)));
  const node = parent.kept.get("table");
  if (!node) return;
  const byId = new Map([...dead].reverse().map((item) => [item.id, item]));
  keep(node.body, [...byId.keys()], (id) => {
    const row = line(DEAD);
    const item = byId.get(id);
    fill(row, [id, null, item.how, String(item.open), item.reason.split("\n")[0]]);
    row.lastChild.append(el("button", { type: "button", "aria-label": `Post-mortem of ${id}`, onclick: () => showDeath(one.row, id) }, "Post-mortem"));
    return row;
  });
  for (const [id, { at }] of byId) date(node.body.kept.get(id).children[1], at);
}

// ---- plots

function plotNode([label, text, names]) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 300 60");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const paths = names.map((_, index) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    if (index) path.setAttribute("class", "second");
    svg.append(path);
    return path;
  });
  const now = el("output");
  const node = el("figure", { class: "plot" }, el("figcaption", {}, el("span", {}, label), now), svg);
  const draw = (history) => {
    const known = names.map((name) => history[name]);
    const most = Math.max(...known.flat().map((value) => value ?? 0), 0);
    known.forEach((values, index) => paths[index].setAttribute("d", steps(history.at, values, history.until, most)));
    const last = known.map((values) => text(values.at(-1) ?? null) || "–").join(", ");
    say(now, last);
    svg.setAttribute("aria-label", `${label} of the last 15 minutes: now ${last}, at most ${text(most)}`);
  };
  return { node, draw };
}

// each value holds until the next one
function steps(at, values, until, most) {
  const x = (t) => Math.max(0, Math.min(300, ((t - until + SPAN_S) / SPAN_S) * 300)).toFixed(1);
  let path = "";
  let before = null;
  values.forEach((value, index) => {
    const end = x(index + 1 < at.length ? at[index + 1] : until);
    if (value !== null) {
      const y = (57 - (most ? value / most : 0) * 54).toFixed(1);
      path += before === null ? `M${x(at[index])} ${y}H${end}` : `V${y}H${end}`;
    }
    before = value;
  });
  return path;
}

let isReading = false;
let mustReadAgain = false;

// one at a time: two that ask from the same moment on would both add what came since
async function readHistories() {
  mustReadAgain = true;
  if (isReading) return;
  isReading = true;
  while (mustReadAgain) {
    mustReadAgain = false;
    await readHistoriesOnce();
  }
  isReading = false;
}

async function readHistoriesOnce() {
  if (!hasHistory || document.hidden) return;
  const apps = new Set([...opened].map((key) => rows.get(key)?.app).filter((app) => app !== undefined));
  for (const app of histories.keys()) if (!apps.has(app)) histories.delete(app);
  for (const app of apps) {
    const known = histories.get(app);
    const since = known ? `&since=${known.at}` : "";
    try {
      const answer = await read(`/api/servd/v1/figures/history?application=${part(app)}${since}`);
      const passed_s = known && (performance.now() - known.takenAt) / 1000;
      if (known && (histories.get(app) !== known || Math.abs(answer.at - known.at - passed_s) > CLOCK_STEP_S)) {
        // another controller tells, or its clock was set: what is known and what is new have not the same times
        histories.delete(app);
        mustReadAgain = true;
      } else take(app, answer, known);
    } catch (error) {
      if (error.status === 404) hasHistory = false;
      // else the state of the connection tells
      return;
    }
  }
  draw();
}

function take(app, answer, known) {
  const deployments = known?.deployments ?? new Map();
  for (const [name, found] of Object.entries(answer.deployments)) {
    const kept = deployments.get(name);
    if (kept) for (const column of Object.keys(kept)) Array.isArray(kept[column]) && kept[column].push(...found[column]);
    else deployments.set(name, { ...found });
  }
  for (const kept of deployments.values()) {
    kept.until = answer.at;
    // the last one of before holds at the begin
    while (kept.at.length > 1 && kept.at[1] <= answer.at - SPAN_S) {
      for (const column of Object.keys(kept)) Array.isArray(kept[column]) && kept[column].shift();
    }
  }
  histories.set(app, { at: answer.at, takenAt: performance.now(), deployments });
}

// ---- the timeline

let notes = 0;

function note(at, what, text, isBad = false, more = null) {
  notes += 1;
  happened.unshift({ key: `s${notes}`, at, what, text, isBad, more });
  happened.length = Math.min(happened.length, EVENTS_SHOWN);
}

function noteChanges(before, after) {
  const now = wallTime();
  for (const [key, row] of after) {
    const old = before.get(key);
    if (!key.startsWith("a/") && !key.startsWith("d/")) continue;
    const what = key.startsWith("a/") ? `Application ${named(row.name)}` : `Deployment ${deployment(row)}`;
    if (!old || old.status === row.status) continue;
    note(now, "Status", `${what}: ${old.status} to ${row.status}`, LOOKS[row.status] === "bad");
  }
  for (const [key, row] of before) {
    if (key.startsWith("a/") && !after.has(key)) note(now, "Status", `Application ${named(row.name)} is gone`);
  }
}

function eventsOfNow() {
  const found = [...happened];
  for (const [key, row] of rows) {
    if (key.startsWith("e/")) {
      found.push({ key, at: row.first, what: "Error", text: `${deployment(row)}: ${row.text}`, isBad: true, more: () => showError(key.slice(2)) });
    } else if (key.startsWith("d/")) {
      for (const [at, from, to, reason] of row.decisions) {
        found.push({ key: `c${key}${at}`, at, what: "Scaling", text: `${deployment(row)}: ${from} to ${to} replicas: ${reason}` });
      }
      for (const item of row.dead) {
        const text = `${item.id}: ${[item.how, item.reason.split("\n")[0]].filter(Boolean).join(", ")}`;
        found.push({ key: `x${item.id}`, at: item.at, what: "Death", text, isBad: item.how !== "exit code 0", more: () => showDeath(row, item.id) });
      }
    }
  }
  for (const item of revisions.revisions) {
    const whose = item.applications.map(named).join(", ") || "no application";
    found.push({ key: `v${item.revision}`, at: item.at, what: "Document", text: `Revision ${item.revision} (${whose}): ${item.origin}`, more: () => showDifference(item.revision) });
  }
  return found.sort((a, b) => b.at - a.at).slice(0, EVENTS_SHOWN);
}

function drawTimeline() {
  const events = new Map(eventsOfNow().map((item) => [item.key, item]));
  keep($("events"), [...events.keys()], (key) => {
    const { what, text, isBad, more } = events.get(key);
    const inside = more ? el("button", { type: "button", class: "plain", onclick: more }, text) : el("span", {}, text);
    return el("li", {}, el("time"), el("span", { class: isBad ? "bad" : "dim" }, what), el("span", {}, inside));
  });
  for (const [key, { at }] of events) date($("events").kept.get(key).firstChild, at);
  if (!events.size && !$("events").textContent) keep($("events"), ["none"], () => el("li", {}, "Nothing has happened yet."));
}

// ---- errors

const ERRORS = [["Error", "name"], ["Where", "text"], ["Deployment", ""], ["Count", "number"], ["Last", ""], ["First", ""]];

function drawErrors() {
  const found = [...rows].filter(([key]) => key.startsWith("e/")).sort(([, a], [, b]) => b.last - a.last);
  keep($("error-list"), [found.length ? "table" : "none"], (key) => (key === "table" ? table("Errors of applications", ERRORS) : el("p", { class: "dim" }, "No error of any application is known.")));
  const node = $("error-list").kept.get("table");
  if (!node) return;
  const byKey = new Map(found);
  keep(node.body, [...byKey.keys()], (key) => {
    const row = line(ERRORS);
    row.children[0].append(el("button", { type: "button", class: "plain", onclick: () => showError(key.slice(2)) }));
    return row;
  });
  for (const [key, row] of byKey) {
    const node_ = node.body.kept.get(key);
    say(node_.children[0].firstChild, row.text || row.type);
    fill(node_, [null, row.place, deployment(row), String(row.count), moment(row.last), moment(row.first)]);
  }
}

async function showError(id) {
  await show("Error", async () => {
    const found = await read(`/api/servd/v1/errors/${part(id)}`);
    const requests = found.request_ids.map((request) =>
      el("button", { type: "button", onclick: () => showLogsOfRequest(request), "aria-label": `Logs of request ${request}` },
        Object.hasOwn(found.trace_ids, request) ? `${request}, trace ${found.trace_ids[request]}` : request));
    return [
      el("p", {}, `${found.message || found.type}`),
      el("p", { class: "dim" }, `${deployment({ app: found.application, name: found.deployment })}${found.method ? `, ${found.method}` : ""}${found.route ? `, ${found.route}` : ""}: ${found.count} times, last ${moment(found.last_at)}, first ${moment(found.first_at)}`),
      el("pre", { tabindex: 0 }, found.traceback),
      el("p", {}, "Requests, the last first; each leads to its log lines:"),
      el("div", { class: "buttons" }, ...requests),
    ];
  });
}

// ---- logs

let logText = "";
let isFollowing = false;
let logsAsked = 0;
let logsAnswered = 0;

function drawLogChoices() {
  const select = $("log-of");
  const wanted = [["", "everything"]];
  for (const [key, row] of rows) {
    if (key.startsWith("a/")) wanted.push([query({ application: row.name }), named(row.name)]);
    if (key.startsWith("d/")) wanted.push([query({ application: row.app, deployment: row.name }), `${named(row.app)}/${row.name}`]);
  }
  const chosen = select.value;
  if (chosen && !wanted.some(([value]) => value === chosen)) wanted.push([chosen, select.selectedOptions[0].textContent]);
  const text = JSON.stringify(wanted);
  if (select.told === text) return;
  select.told = text;
  select.replaceChildren(...wanted.map(([value, label]) => el("option", { value }, label)));
  select.value = chosen;
}

const query = (about) => new URLSearchParams(about).toString();

function logFilter() {
  const about = new URLSearchParams($("log-of").value);
  if ($("log-level").value) about.set("level", $("log-level").value);
  if ($("log-request").value.trim()) about.set("request", $("log-request").value.trim());
  return about.toString();
}

// of several that are asked only the last one is answered
async function readLogs() {
  const number = (logsAsked += 1);
  let text;
  try {
    text = await api("GET", `/api/servd/v1/logs?${logFilter()}`);
  } catch (error) {
    // the lines that come next may be those of before
    if (number !== logsAsked) return;
    logText = "";
    say($("log-note"), error.message);
    return;
  } finally {
    logsAnswered = Math.max(logsAnswered, number);
  }
  if (number !== logsAsked || text === logText) return;
  logText = text;
  const { lines, is_all } = JSON.parse(text);
  const box = $("log-lines");
  const isAtEnd = box.hidden || box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.hidden = false;
  box.replaceChildren(...lines.map((item) => el("div", { class: item.level, title: item.source }, item.text || " ")));
  if (isAtEnd) box.scrollTop = box.scrollHeight;
  const rest = is_all ? "" : "; what is further back servd logs shows";
  say($("log-note"), lines.length ? `The last ${lines.length} lines${rest}.` : `No such line${rest}.`);
}

function beginLogs() {
  isFollowing = true;
  logText = "";
  return readLogs();
}

function showLogsOf(row, id) {
  const value = query({ application: row.app, deployment: row.deployment, replica: id });
  $("log-of").append(el("option", { value }, id));
  $("log-of").value = value;
  $("log-request").value = "";
  goToLogs();
}

function showLogsOfRequest(request) {
  $("dialog").close();
  $("log-of").value = "";
  $("log-level").value = "";
  $("log-request").value = request;
  goToLogs();
}

function goToLogs() {
  $("logs").scrollIntoView();
  $("log-lines").focus();
  beginLogs();
}

// ---- revisions

const REVISIONS = [["Revision", "name"], ["When", ""], ["Applications", ""], ["Outcome", ""], ["By", "text"], ["", ""]];
let revisionsDue = 0;
let revisionsAsked = 0;
let revisionsAnswered = 0;
let areRevisionsOld = false;

function readRevisionsSoon() {
  areRevisionsOld = true;
  clearTimeout(revisionsDue);
  revisionsDue = setTimeout(readRevisions, 300);
}

// of several that are asked only the last one is answered
async function readRevisions() {
  const number = (revisionsAsked += 1);
  try {
    const found = await read("/api/servd/v1/revisions?limit=50");
    if (number !== revisionsAsked) return;
    revisions = found;
    areRevisionsOld = false;
  } catch {
    // the state of the connection tells, and it is tried again
    return;
  } finally {
    revisionsAnswered = Math.max(revisionsAnswered, number);
  }
  draw();
}

// what has become of one may be known later than how its applications are
function readRevisionsAgain() {
  if (document.hidden || source?.readyState !== EventSource.OPEN || revisionsAnswered !== revisionsAsked) return;
  const current = revisions.revisions.find((item) => item.revision === revisions.revision);
  if (areRevisionsOld || (current?.outcome === "undecided" && current.applications.length)) readRevisions();
}

function drawRevisions() {
  const found = new Map(revisions.revisions.map((item) => [String(item.revision), item]));
  keep($("revision-list"), [found.size ? "table" : "none"], (key) => (key === "table" ? table("Revisions", REVISIONS) : el("p", { class: "dim" }, "Nothing was deployed yet.")));
  const node = $("revision-list").kept.get("table");
  if (!node) return;
  keep(node.body, [...found.keys()], (key) => {
    const number = found.get(key).revision;
    const row = line(REVISIONS);
    row.state = state("");
    row.back = el("button", { type: "button", "aria-label": `Roll back to revision ${number}…`, onclick: () => askRollback(number) }, "Roll back…");
    row.children[3].append(row.state);
    row.lastChild.append(el("div", { class: "buttons" },
      el("button", { type: "button", "aria-label": `Differences of revision ${number}`, onclick: () => showDifference(number) }, "Differences"), row.back));
    return row;
  });
  for (const [key, item] of found) {
    const row = node.body.kept.get(key);
    const isCurrent = item.revision === revisions.revision;
    look(row.state, item.outcome === "undecided" ? "" : item.outcome);
    row.state.hidden = item.outcome === "undecided";
    row.back.hidden = isCurrent;
    const apps = item.applications.map(named).join(", ") || (item.running ? "none" : "none, Serve does not run");
    fill(row, [`${item.revision}${isCurrent ? " (in force)" : ""}`, moment(item.at), apps, null, item.origin]);
  }
}

async function showDifference(number) {
  await show(`Revision ${number}: what it changed`, async () => {
    const after = await read(`/api/servd/v1/revisions/${number}`);
    const before = number > 1 ? await read(`/api/servd/v1/revisions/${number - 1}`) : null;
    const lines = differences(wished(before), wished(after));
    const changed = lines.filter(([mark]) => mark !== " ").length;
    const pre = el("pre", { tabindex: 0 });
    for (const [mark, text] of around(lines)) {
      const kind = { "+": "added", "-": "removed" }[mark];
      pre.append(el("span", kind ? { class: kind } : {}, `${mark} ${text}${kind ? "" : "\n"}`));
    }
    const note = changed ? `${changed} lines of the documents differ from revision ${number - 1}.` : "The documents are the same; the code may differ.";
    return [el("p", { class: "dim" }, `${after.origin}, ${moment(after.at)}`), el("p", {}, note), pre];
  });
}

function wished(revision) {
  if (!revision) return [];
  const { running, deploy_mode, document, applications } = revision;
  const others = Object.keys(applications).filter((name) => applications[name] === null);
  return JSON.stringify({ running, deploy_mode, document, without_a_document: others }, null, 2).split("\n");
}

// lines as [" ", "+" or "-", text]: the longest common part stays
function differences(before, after) {
  let begin = 0;
  while (begin < before.length && begin < after.length && before[begin] === after[begin]) begin += 1;
  let end = 0;
  while (end < before.length - begin && end < after.length - begin && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  const a = before.slice(begin, before.length - end);
  const b = after.slice(begin, after.length - end);
  const same = (text) => [" ", text];
  const middle = [];
  if (a.length * b.length > DIFF_LINES * DIFF_LINES) {
    middle.push(...a.map((text) => ["-", text]), ...b.map((text) => ["+", text]));
  } else {
    const width = b.length + 1;
    const common = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
      }
    }
    let i = 0;
    let j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { middle.push(same(a[i])); i += 1; j += 1; }
      else if (j >= b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) { middle.push(["-", a[i]]); i += 1; }
      else { middle.push(["+", b[j]]); j += 1; }
    }
  }
  return [...before.slice(0, begin).map(same), ...middle, ...after.slice(after.length - end).map(same)];
}

// what differs with three lines around it
function around(lines) {
  const near = lines.map(() => false);
  lines.forEach(([mark], index) => {
    if (mark !== " ") for (let i = Math.max(0, index - 3); i <= Math.min(lines.length - 1, index + 3); i += 1) near[i] = true;
  });
  const found = [];
  lines.forEach((item, index) => {
    if (near[index]) found.push(item);
    else if (index === 0 || near[index - 1]) found.push([" ", "…"]);
  });
  return found;
}

// ---- dialogs

function prepare(title, body) {
  $("dialog-head").textContent = title;
  $("dialog-body").replaceChildren(...body);
  $("dialog-trouble").hidden = true;
  $("dialog-go").hidden = true;
  $("dialog-close").textContent = "Close";
  tellAnew = null;
  isUnderWay = false;
  if (!$("dialog").open) $("dialog").showModal();
}

let dialogNumber = 0;
// what a dialog shows of how everything is now, and whether what it offers is being done
let tellAnew = null;
let isUnderWay = false;

async function show(title, make) {
  const number = (dialogNumber += 1);
  prepare(title, [el("p", { class: "dim" }, "…")]);
  try {
    const body = await make();
    if (number === dialogNumber) $("dialog-body").replaceChildren(...body);
    return number === dialogNumber;
  } catch (error) {
    if (number === dialogNumber) trouble(error.message);
    return false;
  }
}

function trouble(text) {
  $("dialog-trouble").hidden = false;
  say($("dialog-trouble"), text);
}

// nothing is changed before somebody has seen what it means and pressed the button
function offer(label, run, isDanger = false) {
  const go = $("dialog-go");
  go.hidden = false;
  go.textContent = label;
  go.className = isDanger ? "danger" : "";
  go.disabled = false;
  $("dialog-close").textContent = "Cancel";
  go.onclick = async () => {
    go.disabled = isUnderWay = true;
    $("dialog-trouble").hidden = true;
    const number = dialogNumber;
    const title = $("dialog-head").textContent;
    const isShown = () => number === dialogNumber && $("dialog").open;
    try {
      const text = await run();
      note(wallTime(), "Done", text);
      if (isShown()) $("dialog").close();
      tell(text);
    } catch (error) {
      if (isShown()) trouble(error.message);
      else {
        // who has closed it believes that it is done
        note(wallTime(), "Failed", `${title}: ${error.message}`, true);
        tell(`${title}: ${error.message}`, true);
      }
    }
    if (number === dialogNumber) go.disabled = isUnderWay = false;
    draw();
  };
}

// as the controller has it
function atCapacity(count, percent) {
  if (percent === null || !count) return count;
  return percent ? Math.max(Math.floor((count * percent) / 100 + 0.5), 1) : 0;
}

function askScale(key) {
  const row = rows.get(key);
  if (!row) return;
  dialogNumber += 1;
  const percent = () => rows.get("i")?.capacity ?? null;
  const before = percent() ? Math.round((row.wanted * 100) / percent()) : row.wanted;
  const input = el("input", { type: "number", min: 0, max: 100000, step: 1, value: before, id: "scale-count" });
  const plan = el("p", { role: "status" });
  const tellPlan = () => {
    const now = rows.get(key)?.wanted;
    const given = input.valueAsNumber;
    const wanted = atCapacity(given, percent());
    const moved = wanted - now;
    const isCount = Number.isInteger(given) && given >= 0;
    $("dialog-go").disabled = isUnderWay || now === undefined || !isCount;
    if (now === undefined) return say(plan, "It is not there any more.");
    const does = moved > 0 ? `${moved} more are started` : moved < 0 ? `${-moved} finish what they have, then end` : "nothing is started or ended";
    const share = percent() === null ? "" : ` target_capacity is ${percent()} %: ${given} count as ${wanted}.`;
    say(plan, isCount ? `${now} to ${wanted} replicas: ${does}.${share}` : "Give a whole number, 0 or more.");
  };
  input.addEventListener("input", tellPlan);
  const stays = row.autoscaled ? "It is autoscaled now; the count is pinned instead" : "The count is pinned";
  prepare(`Scale ${deployment(row)}`, [
    el("p", {}, el("label", { for: "scale-count" }, "Replicas "), input),
    plan,
    el("p", { class: "dim" }, `${stays} until the next change that names the application.`),
  ]);
  offer("Scale", async () => {
    const wanted = input.valueAsNumber;
    await api("POST", `/api/v1/applications/${part(row.app)}/deployments/${part(row.name)}/scale`, { target_num_replicas: wanted });
    return `Scaled ${deployment(row)} to ${wanted} replicas.`;
  });
  tellAnew = tellPlan;
  tellPlan();
  input.select();
}

function askDelete(name) {
  const app = grouped().get(name);
  if (!app) return;
  dialogNumber += 1;
  const { revision } = rows.get("i");
  const columns = [["Deployment", "name"], ["What happens", ""], ["Replicas", "number"]];
  const node = table("What is removed", columns);
  for (const one of app.deployments.values()) {
    const row = line(columns);
    fill(row, [one.row.name, "removed", `${one.replicas.length} to 0`]);
    node.body.append(row);
  }
  prepare(`Delete application ${named(name)}`, [
    el("p", {}, `Its replicas finish what they have, then end${app.row.route === null ? "" : `, and ${app.row.route} is not served any more`}. Other applications stay.`),
    node,
    el("p", { class: "dim" }, `A rollback to revision ${revision} brings it back.`),
  ]);
  offer("Delete", async () => {
    await api("DELETE", `/api/servd/v1/applications/${part(name)}`, undefined, { "If-Match": `"${revision}"` });
    return `Deleted application ${named(name)}.`;
  }, true);
}

async function askRollback(number) {
  const path = `/api/servd/v1/revisions/${number}/rollback`;
  let revision = 0;
  const isThere = await show(`Roll back to revision ${number}`, async () => {
    const plan = JSON.parse(await api("POST", `${path}?dry_run=true`));
    revision = plan.revision;
    return planNodes(plan);
  });
  if (!isThere) return;
  offer("Roll back", async () => {
    const made = JSON.parse(await api("POST", path, undefined, { "If-Match": `"${revision}"` })).revision;
    return `Rolled back to revision ${number}; this is revision ${made}.`;
  });
}

function planNodes(plan) {
  const columns = [["Application", "name"], ["Deployment", ""], ["Replicas", "number"], ["What happens", ""], ["Because of", "text"]];
  const node = table("What happens", columns);
  const notes = [];
  const add = (...texts) => {
    const row = line(columns);
    fill(row, texts);
    node.body.append(row);
  };
  for (const [option, [before, after]] of Object.entries(plan.http)) notes.push(el("p", {}, `HTTP option ${option}: ${before} to ${after}`));
  for (const [name, app] of Object.entries(plan.applications)) {
    add(named(name), "", "", app.action, app.fields.join(", "));
    for (const item of Object.values(app.deployments)) {
      const after = item.replicas_after === null ? "?" : item.replicas_after;
      add(named(name), item.name, `${item.replicas_before} to ${after}`, item.action, item.fields.join(", "));
    }
    if (app.note) notes.push(el("p", {}, `${named(name)}: ${app.note}`));
    const files = Object.entries(app.files);
    if (files.length) {
      const shown = files.slice(0, 20).map(([path, what]) => el("li", {}, `${what} ${path}`));
      if (files.length > 20) shown.push(el("li", {}, `and ${files.length - 20} more files`));
      notes.push(el("p", {}, `${named(name)}: files`), el("ul", {}, ...shown));
    }
  }
  if (!Object.keys(plan.applications).length) add("none", "", "", "", "");
  return [el("p", {}, `Compared with revision ${plan.revision}, which is in force:`), node, ...notes];
}

const showStack = (id) =>
  show(`Stack of ${id}`, async () => [el("pre", { tabindex: 0 }, await api("GET", `/api/servd/v1/replicas/${part(id)}/stack`))]);

const showDeath = (row, id) =>
  show(`Post-mortem of ${id}`, async () => {
    const status = await read("/api/servd/v1/status");
    const dead = status.applications[row.app]?.deployments[row.full]?.recent_dead_replicas.find((item) => item.replica_id === id);
    if (!dead) return [el("p", {}, "Of this one nothing is kept any more.")];
    const how = dead.signal !== null ? `signal ${dead.signal}` : dead.exit_code !== null ? `exit code ${dead.exit_code}` : "nobody saw how";
    const found = [
      el("p", {}, dead.reason || "It ended."),
      el("p", { class: "dim" }, `${how}; pid ${dead.pid ?? "unknown"}; lived ${span(dead.age_s)}; ${dead.open_requests} requests were open`),
    ];
    if (dead.log_lines.length) found.push(el("h4", {}, "Its last log lines"), el("pre", { tabindex: 0 }, dead.log_lines.join("\n")));
    if (dead.stack) found.push(el("h4", {}, "Where it was stuck"), el("pre", { tabindex: 0 }, dead.stack));
    return found;
  });

// ---- all of it

let toldAt = 0;

function tell(text, isBad = false) {
  const node = $("state");
  toldAt = Date.now();
  say(node, text);
  set(node, "class", isBad ? "state bad" : "state good");
}

function drawHead() {
  const about = rows.get("i");
  if (!about) return;
  const proxies = about.proxies.map(([slot, word, , connections]) => `proxy ${slot} ${word}, ${connections} connections`);
  say($("about"), [`${about.http}${about.listening ? "" : " (nobody listens)"}`, `revision ${about.revision}`, ...proxies, about.edition].filter(Boolean).join(" · "));
  const notice = [about.notice, about.upgrade].filter(Boolean).join("\n");
  $("notice").hidden = !notice;
  say($("notice"), notice);
}

function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    // what came with the page stands until it is told
    if (!rows.size) return;
    drawHead();
    drawApplications();
    drawTimeline();
    drawErrors();
    drawLogChoices();
    drawRevisions();
    if ($("dialog").open) tellAnew?.();
  });
}

// another edition's rows may mean something else to its page; who is in the midst of something is not disturbed
const isOutdated = () => edition !== null && edition !== rows.get("i").edition && !$("dialog").open;

function takeRows(found) {
  const before = rows;
  rows = found;
  if (before.size) noteChanges(before, rows);
  edition ??= rows.get("i").edition;
  if (isOutdated()) return location.reload();
  const marks = (all) => [...all].filter(([key]) => key === "i" || key.startsWith("a/")).map(([, row]) => `${row.revision} ${row.status}`).join();
  if (marks(before) !== marks(rows)) readRevisionsSoon();
  $("rest").hidden = $("parts").hidden = false;
  const deployments = [...rows.keys()].filter((key) => key.startsWith("d/"));
  const fresh = deployments.filter((key) => !before.has(key));
  if (fresh.length && !hasChosen && deployments.length <= 3) {
    // where there are few, nobody has to ask for more
    fresh.forEach((key) => opened.add(key));
    readHistories();
  }
  draw();
}

function heard() {
  heardAt = Date.now();
}

function connect() {
  if (source || document.hidden) return;
  // it has as long as any other one
  heard();
  source = new EventSource("/page/events");
  source.addEventListener("open", () => (heard(), tell("live")));
  source.addEventListener("beat", heard);
  source.addEventListener("all", (event) => {
    heard();
    histories.clear();
    readRevisionsSoon();
    takeRows(new Map(Object.entries(JSON.parse(event.data))));
  });
  source.addEventListener("some", (event) => {
    heard();
    const { set: changed, gone } = JSON.parse(event.data);
    const found = new Map(rows);
    for (const key of gone) found.delete(key);
    for (const [key, row] of Object.entries(changed)) found.set(key, row);
    takeRows(found);
  });
  source.addEventListener("error", () => lost());
}

function disconnect() {
  source?.close();
  source = null;
}

let isProbing = false;

// a browser tries again by itself after some failures only
async function lost() {
  disconnect();
  tell("not connected; what is shown may be old", true);
  setTimeout(connect, RETRY_MS);
  // where nobody answers, one that waits is enough
  if (isProbing) return;
  isProbing = true;
  try {
    await api("HEAD", "/page/events");
  } catch (error) {
    if (error.status === 503 && source?.readyState !== EventSource.OPEN) {
      tell(`not live: too many pages are open, or the daemon cannot answer; it is tried again`, true);
    }
  }
  isProbing = false;
}

document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
$("dialog-close").addEventListener("click", () => $("dialog").close());
$("dialog").addEventListener("close", () => {
  // the event comes later, and another one may be open by then
  if (!$("dialog").open) dialogNumber += 1;
  // nothing new may come for long
  if (isOutdated()) location.reload();
});
$("log-form").addEventListener("submit", (event) => {
  event.preventDefault();
  beginLogs();
});
$("logout")?.addEventListener("click", async () => {
  try {
    await fetch("/login", { method: "DELETE", redirect: "manual" });
    location.assign("/");
  } catch (error) {
    tell(`not logged out: ${error.message}`, true);
  }
});
setInterval(() => {
  // also after a clock that was set back
  if (!document.hidden && source && Math.abs(Date.now() - heardAt) > SILENCE_MS) lost();
  if (!document.hidden && isFollowing && $("log-follow").checked && logsAnswered === logsAsked) readLogs();
}, 2000);
setInterval(readHistories, 5000);
// ages, and what was done is no news any more
setInterval(() => {
  if (source?.readyState === EventSource.OPEN && Math.abs(Date.now() - toldAt) > 8000) tell("live");
  readRevisionsAgain();
  draw();
}, 10000);
connect();
