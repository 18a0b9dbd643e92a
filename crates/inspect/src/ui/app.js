// The page: asks the API, shows what it says, and follows the stream of changes.
//
// Whatever comes from the API becomes text nodes and attributes, never markup. Addresses are relative, so that the page also
// works behind a proxy that puts something in front of them.

const API = "api/v1/";

// === what is known ===

const state = {
  overview: null,
  status: null,
  rows: new Map(), // "namespace/name" to a line of the list of Services
  loaded: false,
  changes: [], // newest last
};
const MAX_CHANGES = 512;
const listeners = new Set();
const notify = (what) => listeners.forEach((listener) => listener(what));

async function get(path) {
  const response = await fetch(API + path, { headers: { accept: "application/json" } });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ?? response.statusText);
  return body;
}

const keyOf = (item) => `${item.namespace}/${item.name}`;

async function loadServices() {
  const list = await get("services");
  state.rows = new Map(list.items.map((row) => [keyOf(row), row]));
  state.loaded = true;
  notify("services");
}

async function loadStatus() {
  state.status = await get("status");
  state.overview = state.status.overview;
  take(state.overview.recentChanges);
  notify("overview");
}

// Changes that were known already come again when they are in force.
function take(changes) {
  const id = (change) => `${change.family} ${keyOf(change)} ${change.knownAt}`;
  const known = new Map(state.changes.map((change) => [id(change), change]));
  for (const change of changes) known.set(id(change), change);
  state.changes = [...known.values()].sort((a, b) => a.knownAt - b.knownAt).slice(-MAX_CHANGES);
}

// Many changes at once: it is cheaper to ask for everything.
const FEW = 16;
const stale = new Set();
let refreshing = null;

function refresh(changes) {
  changes.forEach((change) => stale.add(keyOf(change)));
  refreshing ??= setTimeout(async () => {
    const keys = [...stale];
    stale.clear();
    refreshing = null;
    if (!state.loaded) return;
    try {
      if (keys.length > FEW) return await loadServices();
      for (const key of keys) {
        const [namespace, name] = key.split("/");
        const list = await get(`services?namespace=${encodeURIComponent(namespace)}&name=${encodeURIComponent(name)}`);
        if (list.items.length) state.rows.set(key, list.items[0]);
        else state.rows.delete(key);
      }
      notify("services");
    } catch (error) {
      console.warn(error);
    }
  }, 500);
}

function follow() {
  const live = document.getElementById("live");
  const show = (name, text) => { live.dataset.state = name; live.textContent = text; };
  const source = new EventSource(API + "events");
  source.onopen = () => show("open", "live");
  source.onerror = () => show("lost", "connection lost, trying again");
  source.addEventListener("overview", (event) => {
    state.overview = { ...JSON.parse(event.data), recentChanges: [] };
    loadStatus().catch(() => notify("overview"));
  });
  source.addEventListener("changes", (event) => {
    const changes = JSON.parse(event.data);
    take(changes);
    refresh(changes);
    notify("changes");
  });
}

// === making elements ===

// h("td", { class: "num" }, "text", child): attributes that are functions listen to events.
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const chip = (text, tone = "") => h("span", { class: `chip ${tone}` }, text);
const panel = (title, ...children) => h("section", { class: "panel" }, h("h2", null, title), ...children);
const head = (title, ...sub) => h("div", { class: "head" }, h("h1", null, title), ...sub.map((text) => h("span", { class: "sub" }, text)));

function table(headings, rows) {
  const cell = (tag) => (value) => h(tag, null, ...[value].flat());
  return h("div", { class: "scroll" },
    h("table", null, h("thead", null, h("tr", null, ...headings.map(cell("th")))),
      h("tbody", null, ...rows.map((row) => h("tr", null, ...row.map(cell("td")))))));
}

const tablePanel = (title, headings, rows) =>
  h("section", { class: "panel flush" }, h("h2", null, title), table(headings, rows));

const serviceLink = (namespace, name, text) =>
  h("a", { href: `#/services/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}` }, text ?? `${namespace}/${name}`);

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const ago = (time) => `${duration(Math.max(0, Date.now() / 1000 - time))} ago`;

// === words ===

const BASIS = {
  ReadySameNode: "those that are ready and hinted for this node",
  ReadySameZone: "those that are ready and hinted for this node's zone",
  ReadyHintsIncomplete: "those that are ready, wherever they are, since not every one has a hint",
  ReadyZoneUnknown: "those that are ready, wherever they are, since this node's zone is not known",
  ReadyNoneForThisZone: "those that are ready, wherever they are, since none is hinted for this node's zone",
  ReadyLocal: "those of this node that are ready",
  Terminating: "none is ready, so those that still serve while they end",
  TerminatingLocal: "none of this node is ready, so those of it that still serve while they end",
  None: "no endpoint is usable",
  NoneLocal: "no endpoint of this node is usable",
};
const USAGE = {
  Serves: ["takes new flows", "good"],
  OtherNode: ["not used: on another node", ""],
  Terminating: ["not used: ending, and others are ready", "warn"],
  NotReady: ["not used: not ready", "bad"],
  HintedElsewhere: ["not used: hinted for elsewhere", ""],
};
const KIND = { ClusterIp: "cluster IP", LoadBalancerIp: "load-balancer IP", ExternalIp: "external IP", NodePort: "node port" };

const bracketed = (ip, port) => (ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`);

function rowState(row) {
  if (row.conflicts > 0) return ["conflict", "bad"];
  if (!row.clusterIps.length && !row.ports.length) return ["not served", "warn"];
  if (row.waiting) return ["waiting", "warn"];
  if (row.endpoints.serving === 0) return ["no endpoints", "bad"];
  return ["in force", "good"];
}

// === overview ===

function overviewView() {
  const root = h("div");
  const draw = () => {
    const { status, overview } = state;
    if (!status || !overview) return void root.replaceChildren(h("p", { class: "empty" }, "Asking the proxy …"));
    const failing = overview.families.filter((family) => family.failure);
    const health = status.health.healthy ? (status.health.reasons.length ? "warn" : "good") : "bad";
    const waiting = overview.families.filter((family) => family.waitingSeconds !== null);
    const empty = [...state.rows.values()].filter((row) => row.endpoints.serving === 0).length;
    const done = state.changes.map((change) => change.latencySeconds).filter((value) => value !== null).sort((a, b) => a - b);
    root.replaceChildren(
      head("Overview", `node ${overview.node}`, `mode ${status.mode}`, status.version, `running for ${duration(status.now - status.startedAt)}`),
      h("div", { class: "cards" },
        card("Health", health === "bad" ? "not healthy" : "healthy", status.health.reasons.join("; ") || "rules are in place", health),
        card("In force", waiting.length ? "waiting" : "everything", waiting.map((family) => `${family.family} for ${duration(family.waitingSeconds)}`).join(", ") || "nothing waits for the kernel", waiting.length ? "warn" : "good"),
        card("Services", String(overview.services), state.loaded ? `${empty} without endpoints` : ""),
        card("Conflicts", String(overview.conflicts.length), overview.conflicts.length ? "claims that lose" : "nobody claims what another has", overview.conflicts.length ? "bad" : ""),
        card("Latency", done.length ? duration(done[Math.floor(done.length / 2)]) : "–", done.length ? `median of ${done.length} changes, worst ${duration(done[done.length - 1])}` : "no change yet")),
      ...failing.map((family) => h("section", { class: "panel error" }, `${family.family}: ${family.failure.error} (failure ${family.failure.times} in a row)`)),
      ...status.limits.map((limit) => h("section", { class: "panel" }, chip("switched off", "warn"), ` ${limit.what}: ${limit.why}`)),
      h("div", { class: "columns" },
        h("div", null,
          tablePanel("Families", ["Family", "State", "Addresses", "Repairs", "Divergences", "Rebuilds", "Failures"], overview.families.map((family) => [
            family.family,
            family.failure ? chip("failing", "bad") : family.wasSynced ? (family.waitingSeconds === null ? chip("in force", "good") : chip("waiting", "warn")) : chip("starting", "warn"),
            String(family.frontends), String(family.repairs.repairs), String(family.repairs.auditDivergences), String(family.repairs.rebuilds),
            String(family.repairs.failedSyncs + family.repairs.failedReadings)])),
          overview.conflicts.length ? tablePanel("Conflicts", ["Address", "Served", "Not served"], overview.conflicts.slice(0, 50).map((conflict) => [
            h("code", null, `${conflict.address ?? "node port"} ${conflict.port}/${conflict.protocol}`), portLink(conflict.winner), h("span", { class: "bad-text" }, portLink(conflict.loser))])) : null),
        h("div", null,
          panel("Latency of the last changes", latencies(state.changes.slice(-60))),
          tablePanel("Last changes", ["When", "Service", "Latency"], state.changes.slice(-8).reverse().map(changeRow)))));
  };
  draw();
  return { element: root, update: draw, tick: draw };
}

const card = (label, value, note, tone = "") =>
  h("div", { class: `card ${tone}` }, h("div", { class: "label" }, label), h("div", { class: "value" }, value), h("div", { class: "note" }, note));

const portLink = (port) => {
  const [namespace, rest] = port.split("/");
  return serviceLink(namespace, rest.split(":")[0], port);
};

const changeRow = (change) => [
  ago(change.knownAt),
  [serviceLink(change.namespace, change.name), " ", h("span", { class: "sub" }, change.family)],
  change.latencySeconds === null ? chip("not in force", "warn") : duration(change.latencySeconds),
];

// Bars, on a logarithmic scale from 10 µs to 10 s.
function latencies(changes) {
  if (!changes.length) return h("p", { class: "empty" }, "No change since the start.");
  const [width, height, left] = [440, 110, 50];
  const level = (seconds) => Math.min(1, Math.max(0.02, (Math.log10(Math.max(seconds, 1e-5)) + 5) / 6));
  const step = (width - left) / Math.max(changes.length, 24);
  const lines = [[0.001, "1 ms"], [0.1, "100 ms"], [10, "10 s"]].map(([seconds, label]) => {
    const y = height - level(seconds) * (height - 8);
    return [svg("line", { x1: left, x2: width, y1: y, y2: y }), svg("text", { x: 0, y: y + 4 }, label)];
  });
  const bars = changes.map((change, n) => {
    const size = level(change.latencySeconds ?? 10) * (height - 8);
    const bar = svg("rect", { x: left + n * step + 1, y: height - size, width: Math.max(1, step - 2), height: size, rx: 1.5 });
    if (change.latencySeconds === null) bar.setAttribute("class", "waiting");
    bar.append(svg("title", {}, `${keyOf(change)} ${change.family}: ${change.latencySeconds === null ? "not in force" : duration(change.latencySeconds)}`));
    return bar;
  });
  return svg("svg", { class: "bars", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Latency of the last changes" }, ...lines.flat(), ...bars);
}

// === Services ===

const ROW = 38;
const COLUMNS = [
  ["Service", (row) => keyOf(row)],
  ["Cluster IP", (row) => row.clusterIps[0] ?? ""],
  ["External", (row) => row.externalIps[0] ?? ""],
  ["Ports", (row) => parseInt(row.ports[0] ?? "0", 10)],
  ["Endpoints", (row) => row.endpoints.serving],
  ["Local", (row) => row.endpoints.local],
  ["New/s", (row) => rates.get(keyOf(row)) ?? -1],
  ["State", (row) => rowState(row)[0]],
];
// New flows a second by Service, of those through which anything went.
let rates = new Map();
const FILTERS = [
  ["All", () => true],
  ["No endpoints", (row) => row.endpoints.serving === 0],
  ["Conflicts", (row) => row.conflicts > 0],
  ["Waiting", (row) => row.waiting],
];
const RATE = COLUMNS.findIndex(([label]) => label === "New/s");
// Kept while other views are looked at.
const listing = { search: "", filter: 0, column: 0, up: true, top: 0, current: 0 };

function servicesView() {
  let shown = [];
  const search = h("input", { class: "search", type: "search", value: listing.search, placeholder: "Name, namespace, address or port", "aria-label": "Search Services", input: () => { listing.search = search.value; reset(); } });
  const count = h("span", { class: "count", role: "status" });
  const buttons = FILTERS.map(([label], n) => h("button", { type: "button", "aria-pressed": String(n === listing.filter), click: () => { listing.filter = n; buttons.forEach((button, m) => button.setAttribute("aria-pressed", String(m === n))); reset(); } }, label));
  const headings = COLUMNS.map(([label], n) => h("button", { type: "button", click: () => { listing.up = listing.column === n ? !listing.up : true; listing.column = n; reset(); } }, label));
  const spacer = h("div", { class: "spacer" });
  const rows = h("div", { class: "window" });
  const viewport = h("div", { class: "viewport", tabindex: "0", role: "grid", "aria-label": "Services", scroll: () => { listing.top = viewport.scrollTop; draw(); }, keydown: keys }, spacer, rows);
  const element = h("div", null, head("Services", "on this node"),
    h("div", { class: "tools" }, search, ...buttons, count),
    h("section", { class: "panel flush grid" }, h("div", { class: "grid-head", role: "row" }, ...headings), viewport),
    h("p", { class: "sub" }, h("kbd", null, "/"), " search  ", h("kbd", null, "↑"), " ", h("kbd", null, "↓"), " move  ", h("kbd", null, "Enter"), " open"));

  function select() {
    const words = listing.search.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => `${keyOf(row)} ${row.clusterIps.join(" ")} ${row.externalIps.join(" ")} ${row.ports.join(" ")}`.toLowerCase();
    const [, value] = COLUMNS[listing.column];
    const order = listing.up ? 1 : -1;
    shown = [...state.rows.values()].filter((row) => FILTERS[listing.filter][1](row) && words.every((word) => text(row).includes(word)));
    const keyed = shown.map((row) => [value(row), row]);
    keyed.sort(([a], [b]) => order * (a < b ? -1 : a > b ? 1 : 0));
    shown = keyed.map(([, row]) => row);
    listing.current = Math.min(listing.current, Math.max(0, shown.length - 1));
  }

  function draw() {
    const first = Math.max(0, Math.floor(viewport.scrollTop / ROW) - 6);
    const last = Math.min(shown.length, first + Math.ceil((viewport.clientHeight || 800) / ROW) + 12);
    rows.style.transform = `translateY(${first * ROW}px)`;
    rows.replaceChildren(...shown.slice(first, last).map((row, n) => line(row, first + n)));
  }

  function line(row, n) {
    const [word, tone] = rowState(row);
    const { serving, total, local } = row.endpoints;
    const cells = [
      [h("span", { class: "ns" }, `${row.namespace}/`), h("span", { class: "svc" }, row.name)],
      h("code", null, row.clusterIps.join(", ")), h("code", null, row.externalIps.join(", ")), h("code", null, row.ports.join(", ")),
      h("span", { class: serving === 0 ? "bad-text" : serving < total ? "warn-text" : "" }, `${serving} of ${total}`), String(local), perSecond(rates.get(keyOf(row))), chip(word, tone)];
    const element = h("div", { class: n === listing.current ? "grid-row current" : "grid-row", role: "row", id: `row-${n}`, "aria-rowindex": n + 1, "aria-selected": String(n === listing.current), click: () => { listing.current = n; open(row); } },
      ...cells.map((cell) => h("span", { role: "gridcell" }, ...[cell].flat())));
    return element;
  }

  const open = (row) => { location.hash = `#/services/${encodeURIComponent(row.namespace)}/${encodeURIComponent(row.name)}`; };

  function keys(event) {
    const page = Math.max(1, Math.floor(viewport.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && shown[listing.current]) return open(shown[listing.current]);
    if (!(event.key in moves)) return;
    event.preventDefault();
    listing.current = Math.max(0, Math.min(shown.length - 1, listing.current + moves[event.key]));
    const at = listing.current * ROW;
    if (at < viewport.scrollTop) viewport.scrollTop = at;
    if (at + ROW > viewport.scrollTop + viewport.clientHeight) viewport.scrollTop = at + ROW - viewport.clientHeight;
    draw();
    viewport.setAttribute("aria-activedescendant", `row-${listing.current}`);
  }

  function update() {
    select();
    spacer.style.height = `${shown.length * ROW}px`;
    viewport.setAttribute("aria-rowcount", String(shown.length));
    headings.forEach((heading, n) => { heading.dataset.sort = n === listing.column ? (listing.up ? "up" : "down") : ""; });
    count.textContent = state.loaded ? `${shown.length} of ${state.rows.size}` : "loading …";
    draw();
    if (state.loaded && !shown.length) rows.replaceChildren(h("p", { class: "empty" }, "No Service is like that."));
  }

  function reset() {
    viewport.scrollTop = 0;
    listing.current = 0;
    update();
  }

  return {
    element,
    update: (what) => what === "services" && update(),
    live: async () => {
      if (document.hidden) return;
      const traffic = await get("traffic").catch(() => null);
      if (!traffic) return;
      rates = new Map();
      for (const item of traffic.items) rates.set(keyOf(item), (rates.get(keyOf(item)) ?? 0) + (item.connectionsPerSecond ?? 0));
      if (listing.column === RATE) update(); else draw();
    },
    entered: () => { update(); viewport.scrollTop = listing.top; draw(); (listing.search ? search : viewport).focus({ preventScroll: true }); },
    search,
  };
}

// === one Service ===

function serviceView(namespace, name) {
  const root = h("div", null, head(`${namespace}/${name}`));
  const ask = () => get(`services/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`);
  let counts = new Map();
  const draw = async () => {
    try {
      const service = await ask();
      counts = new Map();
      root.replaceChildren(...explained(service, counts));
    } catch (error) {
      root.replaceChildren(head(`${namespace}/${name}`), h("p", { class: "panel error" }, error.message));
    }
  };
  // What is counted changes in place, so that nobody's focus is lost.
  const live = async () => {
    if (!counts.size || document.hidden) return;
    const service = await ask().catch(() => null);
    for (const [key, text] of service ? countedTexts(service) : []) {
      const shown = counts.get(key);
      if (shown && shown.textContent !== text) shown.textContent = text;
    }
  };
  draw();
  return { element: root, update: (what) => what !== "overview" && draw(), live };
}

const perSecond = (rate) => (rate === undefined ? "" : rate < 100 ? rate.toFixed(1) : String(Math.round(rate)));
const rate = (perSecond) => (perSecond > 0 ? ` (${perSecond < 100 ? perSecond.toFixed(1) : Math.round(perSecond)}/s)` : "");

// What is counted of each port and endpoint, as texts.
function countedTexts(service) {
  return service.families.flatMap((family) => family.ports.filter((port) => port.traffic).flatMap((port) => {
    const key = `${family.family} ${port.servicePort} ${port.protocol}`;
    const { connections, refused, dropped, bytes, retries, connectionsPerSecond, refusedPerSecond, droppedPerSecond } = port.traffic;
    const also = [[bytes, "bytes"], [retries, "endpoints tried in vain"]].filter(([count]) => count != null).map(([count, what]) => `, ${count} ${what}`);
    const all = `${connections} new flows${rate(connectionsPerSecond)}, ${refused} packets refused${rate(refusedPerSecond)}, ${dropped} dropped${rate(droppedPerSecond)}${also.join("")}`;
    const share = (counted) => (connections ? `, ${Math.round((counted / connections) * 100)} %` : "");
    const endpoint = ({ address, traffic }) => [`${key} ${address}`, traffic ? `${traffic.connections}${rate(traffic.connectionsPerSecond)}${share(traffic.connections)}` : ""];
    return [[key, all], ...port.endpoints.map(endpoint)];
  }));
}

function explained(service, counts) {
  const texts = new Map(countedTexts(service));
  const counted = (key) => {
    const shown = h("span", null, texts.get(key) ?? "");
    counts.set(key, shown);
    return shown;
  };
  const ports = service.families.flatMap((family) => family.ports.map((port) => ({ family, port })));
  const missing = service.families.filter((family) => !family.hasClusterIp).map((family) => family.family);
  return [
    h("div", { class: "head" }, h("h1", null, `${service.namespace}/${service.name}`), h("a", { href: "#/services" }, "all Services"),
      missing.length ? h("span", { class: "sub" }, `no cluster IP in ${missing.join(", ")}`) : null),
    ...ports.map(({ family, port }) => h("section", { class: "panel flush" },
      h("h2", { class: "name" }, `${port.servicePort} ${port.protocol} ${family.family} `, family.lastChange ? chip(`changed ${ago(family.lastChange.knownAt)}${family.lastChange.latencySeconds === null ? ", not in force" : `, in force after ${duration(family.lastChange.latencySeconds)}`}`, family.lastChange.latencySeconds === null ? "warn" : "") : null),
      table(["Address", "Kind", "State", ""], port.addresses.map((address) => addressRow(port, address))),
      table(["Policy", "Endpoints", "Why these", "Governs"], port.policies.map((policy) => [
        chip(policy.policy, "accent"), policy.endpoints ? String(policy.endpoints) : chip(policy.drops ? "dropped" : "refused", "bad"), BASIS[policy.basis] ?? policy.basis, policy.governs.join(", ")])),
      table(["Endpoint", "Node", "Conditions", "Use", "New flows", "Slice"], port.endpoints.map((endpoint) =>
        endpointRow(endpoint, counted(`${family.family} ${port.servicePort} ${port.protocol} ${endpoint.address}`)))),
      port.affinitySeconds === null ? null : h("p", { class: "empty" }, `Affinity ClientIP: a client stays with its endpoint for ${duration(port.affinitySeconds)} after its last new flow.`),
      port.traffic ? h("p", { class: "empty" }, counted(`${family.family} ${port.servicePort} ${port.protocol}`)) : null)),
    ports.length ? null : h("p", { class: "panel empty" }, "Nothing of it is served on this node."),
  ].filter(Boolean);
}

function addressRow(port, address) {
  const text = address.address ? bracketed(address.address, address.port) : `node port ${address.port}`;
  const states = { inForce: ["in force", "good"], waiting: ["not in force yet", "warn"], lost: [`not served: ${address.state.winner} has it`, "bad"], notAllowed: ["not served: not an allowed external IP", "bad"] };
  const [word, tone] = states[address.state.state] ?? [address.state.state, ""];
  const to = address.address ? `#/packet?destination=${encodeURIComponent(text)}&protocol=${port.protocol}` : null;
  return [h("code", null, text), KIND[address.kind] ?? address.kind, chip(word, tone), to ? h("a", { href: to }, "follow a packet") : ""];
}

function endpointRow(endpoint, counted) {
  const conditions = endpoint.isTerminating
    ? chip(endpoint.isServing ? "terminating, serving" : "terminating", "warn")
    : endpoint.isReady ? chip("ready", "good") : chip("not ready", "bad");
  const uses = endpoint.uses.map((use) => {
    const [word, tone] = USAGE[use.usage] ?? [use.usage, ""];
    return h("div", null, `${use.policy}: `, h("span", { class: tone ? `${tone}-text` : "sub" }, word));
  });
  return [h("code", null, endpoint.address), endpoint.isLocal ? chip("this node", "accent") : "another", conditions, uses, counted, h("code", { class: "sub" }, endpoint.slice)];
}

// === changes ===

function changesView() {
  const root = h("div");
  const draw = () => root.replaceChildren(head("Changes", "of Services and endpoints, and when they were in force"),
    panel("Latency", latencies(state.changes.slice(-120))),
    state.changes.length ? tablePanel("Newest first", ["When", "Service", "Latency"], state.changes.slice().reverse().slice(0, 200).map(changeRow)) : "");
  draw();
  return { element: root, update: draw, tick: draw };
}

// === a packet ===

function packetView(query) {
  const field = (label, name, attributes) => h("label", null, label, h("input", { name, value: query.get(name) ?? "", autocomplete: "off", spellcheck: "false", ...attributes }));
  const choice = (label, name, options) => h("label", { class: "small" }, label, h("select", { name }, ...options.map(([value, text]) => h("option", { value, selected: (query.get(name) ?? "") === value }, text))));
  const result = h("div");
  const form = h("form", { class: "form", submit: (event) => { event.preventDefault(); ask(); } },
    field("From address", "source", { placeholder: "10.244.0.7", required: true }), field("To address and port", "destination", { placeholder: "10.96.0.10:53", required: true }),
    choice("Protocol", "protocol", [["TCP", "TCP"], ["UDP", "UDP"], ["SCTP", "SCTP"]]),
    choice("Comes from", "from", [["", "guess"], ["pod", "a pod"], ["node", "this node"], ["outside", "outside"]]),
    field("Interface", "interface", { placeholder: "any" }), h("button", { class: "primary" }, "Follow it"));
  const ask = async () => {
    const parameters = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    history.replaceState(null, "", `#/packet?${parameters}`);
    result.replaceChildren(h("p", { class: "empty" }, "Reading the rules …"));
    try {
      result.replaceChildren(...packetReport(await get(`packet?${parameters}`)));
    } catch (error) {
      result.replaceChildren(h("p", { class: "panel error" }, error.message));
    }
  };
  if (query.get("source") && query.get("destination")) ask();
  return { element: h("div", null, head("Packet", "what becomes of it, by the rules as they are in the kernel"), h("section", { class: "panel" }, form), result), update: () => {} };
}

function packetReport(report) {
  const tones = { translated: "good", untouched: "", refused: "bad", dropped: "bad" };
  let chain = "";
  const rules = report.rules.flatMap((step) => {
    const place = `hook ${step.hook}, chain ${step.chain}${step.table ? ` of table ${step.table}` : ""}`;
    const heading = place === chain ? [] : [h("div", { class: "chain" }, place)];
    chain = place;
    return [...heading, h("div", { class: "rule" }, step.rule, ...step.found.map((found) => h("div", { class: "found" }, `found in ${found}`)))];
  });
  return [
    panel("In the words of Kubernetes", h("ol", { class: "steps" }, ...report.words.map((word) => h("li", null, word)))),
    tablePanel("Becomes", ["", "Share", "Goes to", "Source"], report.endings.map((ending) => [
      chip(ending.verdict, tones[ending.verdict]), `${(ending.share * 100).toFixed(0)} %`, h("code", null, ending.to ?? "–"), ending.masqueraded ? "this node (masqueraded)" : "the client"])),
    panel("Rules that match, as read from the kernel", ...(rules.length ? rules : ["none"])),
    panel("Not known from here", h("ul", { class: "steps" }, ...report.unknown.map((word) => h("li", null, word)))),
  ];
}

// === check ===

function checkView() {
  const root = h("div", null, head("Check"), h("p", { class: "empty" }, "Looking at everything …"));
  const draw = async () => {
    try {
      const list = await get("findings");
      const tones = { error: "bad", warning: "warn", info: "accent" };
      root.replaceChildren(
        h("div", { class: "head" }, h("h1", null, "Check"), h("span", { class: "sub" }, `${list.items.length} findings`), h("button", { type: "button", click: draw }, "Look again")),
        ...list.items.map((finding) => h("section", { class: "panel finding" },
          h("div", null, chip(finding.severity, tones[finding.severity])), h("div", { class: "what" }, finding.what),
          h("div", { class: "why" }, finding.why), h("div", { class: "mend" }, h("code", null, finding.mend), copyButton(finding.mend)))),
        list.items.length ? "" : h("p", { class: "panel empty" }, "Nothing was found."),
        h("p", { class: "sub" }, `Looked at: ${list.checked.join("; ")}.`));
    } catch (error) {
      root.replaceChildren(head("Check"), h("p", { class: "panel error" }, error.message));
    }
  };
  draw();
  return { element: root, update: () => {} };
}

function copyButton(text) {
  const button = h("button", { type: "button", click: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it";
    }
  } }, "Copy");
  return button;
}

// === views ===

let view = null;

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  const views = {
    "": overviewView,
    services: () => (rest.length === 2 ? serviceView(...rest) : servicesView()),
    changes: changesView,
    packet: () => packetView(new URLSearchParams(query ?? "")),
    check: checkView,
  };
  view = (views[name] ?? overviewView)();
  document.getElementById("main").replaceChildren(view.element);
  view.entered?.();
  const current = name in views ? name || "overview" : "overview";
  document.querySelectorAll("nav a").forEach((link) => {
    if (link.dataset.view === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  document.title = `${current} · kube-proxy${state.overview ? ` on ${state.overview.node}` : ""}`;
}

document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName);
  if (event.key === "Escape" && typing) document.activeElement.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { o: "#/", s: "#/services", c: "#/changes", p: "#/packet", k: "#/check" };
  if (event.key === "/") {
    event.preventDefault();
    if (!view.search) location.hash = "#/services";
    setTimeout(() => view.search?.focus());
  } else if (keys[event.key]) location.hash = keys[event.key];
});

listeners.add((what) => {
  if (state.overview) document.getElementById("node").textContent = state.overview.node;
  view.update(what);
});
window.addEventListener("hashchange", route);
setInterval(() => view.tick?.(), 10_000);
setInterval(() => view.live?.(), 2_000);
route();
follow();
loadServices().catch((error) => console.warn(error));
loadStatus().catch((error) => console.warn(error));
