"use strict";
// Draws the report from the JSON in the page. Every text is set as text, never as HTML; nothing is loaded.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const { about, rows, sets, marking } = data;
const images = JSON.parse(document.getElementById("images").textContent); // JPEG in base64 by item_index

// ---------------------------------------------------------------- small tools

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en-US");
const n = (value) => whole.format(value);
const counted = (value, noun) => `${n(value)} ${noun}${value === 1 ? "" : "s"}`;
const percent = (share) => {
  const value = 100 * share;
  if (value === 0 || value === 100) return `${value}%`;
  if (value < 0.01) return "<0.01%";
  return `${value > 99 ? Math.min(99.99, value).toFixed(value > 99.9 ? 2 : 1) : value >= 9.95 ? value.toFixed(0) : value.toPrecision(2)}%`;
};
const fixed = (value, digits = 3) => (value == null ? "\u2013" : value.toFixed(digits));
const precise = (share) => `${share === 0 || share === 1 ? 100 * share : (100 * share).toFixed(1)}%`;
// Invisible and direction-changing characters are named: what a text shows is what it holds.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) =>
  String(text).replace(HIDDEN, (one) => `\u27e8U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
const shortened = (text, most) => {
  const points = visible(text);
  return points.length > most ? `${points.slice(0, most)}\u2026` : points;
};

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
// A text of the rows, isolated from the direction of what stands around it.
const own = (text, most = 300) => h("bdi", { class: "own" }, shortened(text, most));
const say = (text) => { byId("live").textContent = text; };
const when = (iso) => (iso ? iso.replace("T", " ").replace(/\+00:00$/, " UTC") : "\u2013");
const plot = (share) => `${Math.max(0, Math.min(100, 100 * share)).toFixed(2)}%`;

function lasted(from, to) {
  const seconds = Math.round((Date.parse(to) - Date.parse(from)) / 1000);
  if (!(seconds >= 0)) return null;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const found = [];
  let left = seconds;
  for (const [size, unit] of parts) {
    if (left >= size || (size === 1 && !found.length)) { found.push(`${Math.floor(left / size)} ${unit}`); left %= size; }
  }
  return found.slice(0, 2).join(" ");
}

// ---------------------------------------------------------------- rows

const readers = new Map(Object.entries(rows.columns).map(([name, column]) => [
  name, Array.isArray(column) ? (at) => column[at] : (at) => column.values[column.numbers[at]],
]));
const cell = (name, at) => (readers.has(name) ? readers.get(name)(at) : null);
const isOk = (at) => cell("status", at) !== "failed";
const labelName = (set, number) => (sets[set].labels[number] ? sets[set].labels[number].name : "");
function scoreOf(set, at, label) {
  const place = rows.answers[set].labels[at].indexOf(label);
  return place < 0 ? null : rows.answers[set].scores[at][place];
}
function imageOf(at) {
  return images[rows.items[at]] || null;
}
function thumb(at, size) {
  const code = imageOf(at);
  const id = shortened(cell("item_id", at) ?? "", 60);
  if (code) return h("img", { class: size, alt: "", src: `data:image/jpeg;base64,${code}`, loading: "lazy", decoding: "async" });
  return h("span", { class: `${size} no-image`, "aria-hidden": "true" }, isOk(at) ? id : "failed");
}
function link(at) {
  const uri = String(cell("uri", at) ?? "");
  if (!/^https?:\/\//i.test(uri)) return null;
  return h("a", { href: uri, target: "_blank", rel: "noopener noreferrer" }, "Open the image");
}

// ---------------------------------------------------------------- charts

function histogram(bins, threshold, wide) {
  const [width, height] = wide ? [420, 96] : [120, 28];
  const most = Math.max(1, ...bins);
  const step = width / bins.length;
  const total = bins.reduce((sum, one) => sum + one, 0);
  const said = total
    ? `Histogram of ${counted(total, "score")}; ${percent(bins.slice(Math.floor(0.5 * bins.length)).reduce((a, b) => a + b, 0) / total)} are 0.5 or higher`
    : "No scores";
  const bars = bins.map((count, place) => {
    const tall = count ? Math.max(1.5, Math.sqrt(count / most) * (height - 2)) : 0;
    const isIn = threshold == null || (place + 0.999) / bins.length > threshold;
    return svg("rect", {
      x: (place * step + 0.5).toFixed(1), y: (height - tall).toFixed(1), width: (step - 1).toFixed(1), height: tall.toFixed(1),
      class: isIn ? "in" : "out",
    }, wide ? svg("title", {}, `${(place / bins.length).toFixed(2)}\u2013${((place + 1) / bins.length).toFixed(2)}: ${n(count)}`) : null);
  });
  const mark = threshold == null ? null : svg("line", {
    x1: (threshold * width).toFixed(1), x2: (threshold * width).toFixed(1), y1: 0, y2: height, class: "limit",
  });
  return svg("svg", {
    viewBox: `0 0 ${width} ${height}`, class: wide ? "histogram wide" : "histogram", role: "img", "aria-label": said,
    preserveAspectRatio: "none",
  }, bars, svg("line", { x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5, class: "axis" }), mark);
}
function bar(share, kind = "") {
  const inner = h("span", {});
  inner.style.width = plot(share);
  return h("span", { class: `meter ${kind}`, "aria-hidden": "true" }, inner);
}
function interval(found) {
  const line = h("span", { class: "interval", "aria-hidden": "true" });
  const range = h("span", { class: "range" });
  range.style.left = plot(found.low);
  range.style.width = plot(found.high - found.low);
  const point = h("span", { class: "point" });
  point.style.left = plot(found.value);
  line.append(range, point);
  return line;
}

// ---------------------------------------------------------------- sections

const SHORT = { labels: "Labels", sheets: "Images", decisions: "Decisions", moved: "Moves", failures: "Failures", mark: "Marks", rows: "Rows" };
const order = [];
function section(id, title, lead, ...children) {
  order.push([id, SHORT[id]]);
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("div", { class: "head" }, h("h2", { id: `${id}-title` }, title), lead ? h("p", { class: "lead" }, lead) : null),
    ...children);
}
const card = (...children) => h("div", { class: "card" }, ...children);
const scroller = (name, table) => h("div", { class: "scroller", role: "region", "aria-label": name, tabindex: "0" }, table);
const badge = (text, kind, title) => h("span", { class: `badge ${kind}`, title }, text);

function stat(name, value, note, kind = "") {
  return h("div", { class: `stat ${kind}` }, h("dt", {}, name), h("dd", {}, h("b", {}, value), note ? h("span", {}, note) : null));
}

function summary() {
  const { rows: total, ok, failed } = about;
  const main = sets[data.focus ?? 0];
  const stats = [stat("Items", n(total), about.finished_at && about.created_at ? `in ${lasted(about.created_at, about.finished_at)}` : "so far")];
  stats.push(stat(about.task === "classify" ? "Labelled" : about.task ? "Embedded" : "Ok", n(ok), total ? percent(ok / total) : ""));
  stats.push(stat("Failed", n(failed), total ? percent(failed / total) : "", failed ? "bad" : ""));
  if (main && main.may_be_none) {
    stats.push(stat("Without a label", n(main.unlabelled), main.rows ? percent(main.unlabelled / main.rows) : ""));
  }
  if (main) {
    const certified = main.labels.filter((one) => one.certificate && one.certificate.verdict === "certified").length;
    const chosen = main.labels.filter((one) => one.count).length;
    if (main.has_thresholds && main.kind !== "multilabel") stats.push(stat("Certified labels", `${n(certified)} of ${n(main.labels.length)}`, `${n(chosen)} occur`, certified ? "good" : ""));
    else stats.push(stat("Labels that occur", `${n(chosen)} of ${n(main.labels.length)}`, ""));
  }
  const facts = [
    ["Model", about.model], ["Source", about.source], ["Output", about.output],
    ["Policy", about.policy ? `${about.policy.name} (${about.policy.version})` : null],
    ["Created", about.created_at ? when(about.created_at) : null], ["Finished", about.finished_at ? when(about.finished_at) : "not yet"],
    ["Precision", about.precision ? `${about.precision}, ${about.decode} decoding` : null], ["Fingerprint", about.fingerprint],
  ].filter(([, value]) => value);
  return h("section", { id: "summary", "aria-labelledby": "summary-title" },
    h("div", { class: "title" },
      h("p", { class: "eyebrow" }, about.task ? String(about.task).replace("_", " ") : "results"),
      h("h1", { id: "summary-title" }, own(about.job_id || about.output))),
    data.notes.map((note) => h("p", { class: "note warn" }, note)),
    h("dl", { class: "stats" }, stats),
    h("details", { class: "card about" }, h("summary", {}, own([about.model, about.finished_at ? `finished ${when(about.finished_at)}` : null].filter(Boolean).join(", ") || "About the job", 120)),
      h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, own(value, 400)))))));
}

// ---------------------------------------------------------------- labels

const precisionOf = (label) => label.precision || label.certified_precision || label.marked || null;

function precisionCell(label) {
  const found = precisionOf(label);
  if (!found) return h("td", { "data-label": "Precision", class: "faint" }, "\u2013");
  const said = `${precise(found.value)} (${precise(found.low)} to ${precise(found.high)}; ${found.source}, n=${n(found.n)})`;
  return h("td", { "data-label": "Precision", class: "precision", title: said },
    h("span", { class: "figure" }, precise(found.value)), h("span", { class: "unseen" }, said), interval(found),
    h("span", { class: "faint small", "aria-hidden": "true" }, `${precise(found.low)} \u2013 ${precise(found.high)}`));
}
function proof(label) {
  const one = label.certificate;
  const sign = (claim) => (claim === "precision" ? "\u2265" : "\u2264");
  if (one) {
    const what = `${one.claim} ${sign(one.claim)} ${one.value}`;
    const said = `${one.verdict}: ${what}, confidence ${one.confidence}, n=${one.marks}, k=${one.wrong}, on ${one.output}, ${when(one.at)}`;
    if (one.verdict === "certified") return badge(`${what} certified${one.is_here ? "" : ` on ${shortened(one.output.replace(/\/+$/, "").split("/").pop(), 30)}`}`, one.is_here ? "good" : "info", visible(said));
    return badge(`${what}: ${one.verdict}`, one.verdict === "failed" ? "bad" : "warn", visible(said));
  }
  if (label.promise) return badge(`${label.promise.claim} ${sign(label.promise.claim)} ${label.promise.value} not certified`, "warn");
  return precisionOf(label) && precisionOf(label).source === "truth" ? badge("by the truth column", "info") : h("span", { class: "faint" }, "no proof");
}

const COLUMNS = [
  ["name", "Label", (label) => label.name.toLowerCase(), ""], ["count", "Rows", (label) => label.count, "number"],
  ["share", "Share", (label) => label.count, ""], ["scores", "Scores", null, ""],
  ["threshold", "Threshold", (label) => label.threshold ?? -1, "number"],
  ["precision", "Precision", (label) => (precisionOf(label) ? precisionOf(label).value : -1), ""],
  ["recall", "Recall", (label) => label.recall ?? -1, "number"], ["proof", "Evidence", null, ""],
];

function labelTable(number) {
  const set = sets[number];
  const columns = COLUMNS.filter(([key]) => (key !== "threshold" || set.has_thresholds) && (key !== "recall" || set.truth));
  const state = { key: "count", down: true, text: "", most: 50 };
  const body = h("tbody", {});
  const more = h("button", { type: "button", class: "quiet", onclick: () => { state.most = Infinity; draw(); } });
  const heads = columns.map(([key, title, value, kind]) => {
    if (!value) return h("th", { scope: "col", class: kind }, title);
    return h("th", { scope: "col", class: kind, "data-key": key }, h("button", {
      type: "button", class: "sorter", onclick: () => { state.down = state.key === key ? !state.down : key !== "name"; state.key = key; draw(); },
    }, title));
  });
  function row(label, at) {
    const share = set.rows ? label.count / set.rows : 0;
    const cells = {
      name: () => h("th", { scope: "row" }, h("button", { type: "button", class: "plain", onclick: () => sheets.show(number, at, true) }, own(label.name, 120))),
      count: () => h("td", { class: "number", "data-label": "Rows" }, n(label.count)),
      share: () => h("td", { class: "share", "data-label": "Share" }, h("span", { class: "figure" }, percent(share)), bar(share)),
      scores: () => h("td", { class: "scores", "data-label": "Scores" }, histogram(label.histogram, label.threshold, false)),
      threshold: () => h("td", { class: "number", "data-label": "Threshold" }, fixed(label.threshold)),
      precision: () => precisionCell(label),
      recall: () => h("td", { class: "number", "data-label": "Recall" }, label.recall == null ? "\u2013" : precise(label.recall)),
      proof: () => h("td", { "data-label": "Evidence" }, proof(label)),
    };
    return h("tr", {}, columns.map(([key]) => cells[key]()));
  }
  function draw() {
    const value = COLUMNS.find(([key]) => key === state.key)[2];
    const found = set.labels.map((label, at) => [label, at]).filter(([label]) => label.name.toLowerCase().includes(state.text));
    found.sort(([one], [other]) => {
      const [a, b] = [value(one), value(other)];
      return (a < b ? -1 : a > b ? 1 : 0) * (state.down ? -1 : 1) || one.name.localeCompare(other.name);
    });
    body.replaceChildren(...found.slice(0, state.most).map(([label, at]) => row(label, at)));
    more.hidden = found.length <= state.most;
    more.textContent = `Show all ${n(found.length)} labels`;
    for (const head of heads) {
      if (head.dataset.key) head.setAttribute("aria-sort", head.dataset.key === state.key ? (state.down ? "descending" : "ascending") : "none");
    }
  }
  draw();
  const search = set.labels.length > 12 ? h("input", {
    type: "search", placeholder: "Find a label", "aria-label": `Find a label of ${visible(set.name)}`,
    oninput: (event) => { state.text = event.target.value.toLowerCase(); draw(); },
  }) : null;
  const never = set.labels.filter((label) => !label.count);
  return card(
    sets.length > 1 || search ? h("div", { class: "tools" }, h("h3", {}, own(set.name), " ", h("span", { class: "faint" }, kindWords(set))), search) : null,
    scroller(`Labels of ${visible(set.name)}`, h("table", { class: "cards labels" }, h("thead", {}, h("tr", {}, heads)), body)), more,
    never.length ? h("details", { class: "never" }, h("summary", {}, `${counted(never.length, "label")} never chosen`),
      h("p", { class: "chips" }, never.slice(0, 300).map((label) => h("span", { class: "chip" }, own(label.name, 80))), never.length > 300 ? `and ${n(never.length - 300)} more` : null)) : null);
}
function kindWords(set) {
  return { single: "one label per item", none: "one label or none", multi: "any number of labels", classify: "head, one label", multilabel: "head, any number" }[set.kind] || set.kind;
}

function pairsCard(number) {
  const set = sets[number];
  const kinds = [];
  if (set.truth && set.truth.confused.length) {
    const name = (label) => (label === set.truth.none ? h("span", { class: "faint" }, "no label") : own(labelName(number, label), 80));
    kinds.push(["What gets confused", "The truth, and the label that was given instead.", ["Truth", "Given"], set.truth.confused.map(([one, other, count]) => [name(one), name(other), count])]);
  }
  if (set.pairs.pairs.length) {
    const named = set.pairs.pairs.map(([one, other, count]) => [own(labelName(number, one), 80), own(labelName(number, other), 80), count]);
    if (set.pairs.kind === "together") kinds.push(["Labels that occur together", `Rows that have both labels${set.pairs.is_exact ? "" : "; rare pairs are left out"}.`, ["Label", "With"], named]);
    else kinds.push(["Pairs that are easily confused", `Rows whose two best labels differ by less than ${set.pairs.close}.`, ["Best", "Next"], named]);
  }
  return kinds.map(([title, lead, heads, found]) => {
    const most = Math.max(...found.map(([, , count]) => count));
    const line = ([one, other, count]) => h("tr", {}, h("th", { scope: "row" }, one), h("td", {}, other), h("td", { class: "number" }, n(count)), h("td", { class: "share" }, bar(count / most)));
    const table = (some) => h("table", { class: "pairs" }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)), h("th", { scope: "col", class: "number" }, "Rows"), h("td", {}))), h("tbody", {}, some.map(line)));
    return card(h("h3", {}, title), h("p", { class: "faint" }, lead), scroller(title, table(found.slice(0, 10))),
      found.length > 10 ? h("details", {}, h("summary", {}, `${n(found.length - 10)} more pairs`), scroller(`${title}, more`, table(found.slice(10)))) : null);
  });
}

function labels() {
  if (!sets.length) return null;
  const truth = sets.map((set) => set.truth).find((one) => one);
  const lead = truth ? `Precision and recall of ${counted(truth.rows, "row")} by the column \u201c${visible(truth.column)}\u201d.` :
    "A score says how well a label fits; marks prove how often it is right.";
  const pairs = sets.map((_, number) => pairsCard(number)).flat();
  return section("labels", "Which labels hold", lead, sets.map((_, number) => labelTable(number)),
    pairs.length ? h("div", { class: "columns" }, pairs) : null);
}

// ---------------------------------------------------------------- sheets

function tile(list, place, note) {
  const at = list[place];
  return h("button", {
    type: "button", class: `tile ${note.kind || ""}`, tabindex: place ? "-1" : "0", onclick: (event) => detail.open(list, place, event.currentTarget),
  }, thumb(at, "thumb"), h("span", { class: "caption" }, h("span", { class: "figure" }, note.text), " ", own(cell("item_id", at) ?? "", 40), note.said ? h("span", { class: "unseen" }, note.said) : null));
}
function sheet(name, list, note) {
  const grid = h("div", { class: "sheet", role: "group", "aria-label": name }, list.map((at, place) => tile(list, place, note(at))));
  grid.addEventListener("keydown", (event) => {
    const tiles = [...grid.children];
    const place = tiles.indexOf(document.activeElement);
    if (place < 0) return;
    const across = tiles.filter((one) => one.offsetTop === tiles[0].offsetTop).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -place, End: tiles.length - 1 - place }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = tiles[Math.max(0, Math.min(tiles.length - 1, place + step))];
    tiles[place].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return grid;
}

const sheets = {
  set: 0, label: 0, body: null, picks: null,
  section() {
    const first = sets.findIndex((set) => set.labels.some((label) => label.count));
    if (!sets.length) return null;
    this.set = Math.max(0, data.focus ?? first);
    this.label = this.best(this.set);
    this.body = h("div", { class: "card", id: "sheet" });
    this.picks = h("div", { class: "picks" });
    this.draw();
    const lacking = rows.items.filter((item, at) => isOk(at) && !images[item]).length;
    const missing = !lacking ? "" : lacking === rows.items.filter((_, at) => isOk(at)).length ? " There are no thumbnails." : ` ${n(lacking)} of the listed items have no thumbnail here.`;
    const lead = `Doubtful items first, then a uniform sample of each label.${missing}`;
    return section("sheets", "What they look like", lead, this.picks, this.body);
  },
  best(set) {
    const counts = sets[set].labels.map((label) => label.count);
    return Math.max(0, counts.indexOf(Math.max(...counts, 0)));
  },
  show(set, label, isAsked) {
    [this.set, this.label] = [set, label];
    this.draw();
    if (isAsked) {
      byId("sheets").scrollIntoView();
      this.body.querySelector("h3").focus({ preventScroll: true });
      say(`Sheet of ${visible(labelName(set, label)).slice(0, 80)}`);
    }
  },
  draw() {
    const set = sets[this.set];
    const byCount = set.labels.map((label, at) => [label, at]).sort(([one], [other]) => other.count - one.count);
    const pickSet = sets.length > 1 ? h("label", {}, "Label set ", h("select", { onchange: (event) => this.show(Number(event.target.value), this.best(Number(event.target.value))) },
      sets.map((one, at) => h("option", { value: at, selected: at === this.set }, visible(one.name))))) : null;
    const pick = byCount.length <= 16
      ? h("div", { class: "chips", role: "group", "aria-label": "Label" }, byCount.map(([label, at]) => h("button", {
        type: "button", class: "chip", "aria-pressed": String(at === this.label), onclick: () => { this.show(this.set, at); this.picks.querySelector("[aria-pressed=true]").focus(); },
      }, own(label.name, 60), h("span", { class: "faint" }, n(label.count)))))
      : h("label", {}, "Label ", h("select", { onchange: (event) => this.show(this.set, Number(event.target.value)) },
        byCount.map(([label, at]) => h("option", { value: at, selected: at === this.label }, `${shortened(label.name, 60)} (${n(label.count)})`))));
    this.picks.replaceChildren(...[pickSet, pick].filter(Boolean));
    this.body.replaceChildren(...this.content(set, set.labels[this.label]).flat(Infinity).filter(Boolean));
  },
  content(set, label) {
    const limit = label.threshold;
    const known = new Map(label.doubtful.map((at, place) => [at, label.doubtful_scores[place]]));
    const note = (at) => {
      const score = known.get(at) ?? scoreOf(this.set, at, this.label);
      const isBelow = !rows.answers[this.set].chosen[at].includes(this.label);
      return { text: fixed(score, 3), kind: isBelow ? "below" : "", said: isBelow ? ", not accepted" : "" };
    };
    const sorted = [...label.doubtful];
    const doubt = set.has_thresholds ? `nearest to the threshold ${fixed(limit)}, on either side` : "the next label is almost as good";
    return [
      h("div", { class: "sheet-head" }, h("div", {}, h("h3", { tabindex: "-1" }, own(label.name, 200)),
        h("p", { class: "faint" }, `${counted(label.count, "row")}, ${percent(set.rows ? label.count / set.rows : 0)}`), h("p", {}, proof(label))),
      h("figure", {}, histogram(label.histogram, limit, true), h("figcaption", { class: "ticks faint small" }, h("span", {}, "0"), h("span", {}, `score${limit == null ? "" : `, threshold ${fixed(limit)}`}`, h("span", { class: "wide-only" }, " (height: square root of the rows)")), h("span", {}, "1")))),
      !label.doubtful.length && !label.uniform.length ? h("p", { class: "empty" }, "No row has this label.") : null,
      label.doubtful.length ? [h("h4", {}, "Doubtful", h("span", { class: "faint" }, ` ${doubt}`)), sheet("Doubtful items", sorted, note)] : null,
      label.uniform.length ? [h("h4", {}, "Uniform sample", h("span", { class: "faint" }, ` ${n(label.uniform.length)} of ${n(label.count)}`)), sheet("Uniform sample", label.uniform, note)] : null,
    ];
  },
};

// ---------------------------------------------------------------- decisions, failures, moves

// The first reason of a decision, in a word.
function why(at) {
  const [first] = cell("decision_reasons", at) || [];
  return shortened((first && (first.label || first.rule)) || cell("error_code", at) || "", 24);
}
function decisions() {
  if (!data.decisions || !data.decisions.length) return null;
  const total = data.decisions.reduce((sum, one) => sum + one.count, 0);
  const kinds = { flag: "bad", review: "warn", undecided: "info", allow: "good" };
  return section("decisions", "What was decided", "Rows by decision of the policy. An item that could not be judged is undecided, never allowed.",
    h("dl", { class: "stats" }, data.decisions.map((one) => stat(one.name, n(one.count), percent(one.count / total), kinds[one.name]))),
    data.decisions.filter((one) => one.items.length && one.name !== "allow").map((one) => card(h("h3", {}, badge(one.name, kinds[one.name] || "info"), h("span", { class: "faint" }, ` ${n(one.items.length)} of ${n(one.count)}`)),
      sheet(`Items with the decision ${one.name}`, one.items, (at) => ({ text: why(at) })))));
}

function failures() {
  const { codes, hosts, more_hosts: more } = data.failures;
  if (!codes.length) return section("failures", "What failed", null, card(h("p", { class: "empty good" }, "No row has failed.")));
  const failed = about.failed || 1;
  const example = (list, place) => h("li", {}, h("button", { type: "button", class: "plain", onclick: (event) => detail.open(list, place, event.currentTarget) },
    own(cell("item_id", list[place]) ?? "", 60)), h("span", { class: "faint" }, own(cell("error_detail", list[place]) ?? "", 220)));
  const byCode = codes.map((code, at) => h("details", { open: at === 0 }, h("summary", {}, h("code", {}, visible(code.code)), bar(code.count / failed, "bad"),
    h("span", { class: "figure" }, `${n(code.count)}`), h("span", { class: "faint figure" }, percent(code.count / failed))),
  h("ul", { class: "examples" }, code.items.map((_, place) => example(code.items, place)))));
  const line = (host) => {
    const count = Object.values(host.codes).reduce((sum, one) => sum + one, 0);
    const find = () => {
      const box = byId("search");
      box.value = host.host;
      box.dispatchEvent(new Event("input"));
      box.scrollIntoView({ block: "center" });
      box.focus();
    };
    const name = /[.:]/.test(host.host) ? h("button", { type: "button", class: "plain", onclick: find }, own(host.host, 80)) : own(host.host, 80);
    return h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "number", "data-label": "Items" }, n(host.items)), h("td", { class: "number", "data-label": "Failed" }, n(count)),
      h("td", { class: "share", "data-label": "Share" }, h("span", { class: "figure" }, percent(count / Math.max(1, host.items))), bar(count / Math.max(1, host.items), "bad")),
      h("td", { class: "chips", "data-label": "Codes" }, Object.entries(host.codes).slice(0, 6).map(([code, number]) => h("span", { class: "chip" }, visible(code), h("span", { class: "faint" }, n(number))))));
  };
  return section("failures", "What failed, and where", `${counted(about.failed, "row")} of ${n(about.rows)}: ${percent(about.failed / Math.max(1, about.rows))}.`,
    card(h("h3", {}, "By error code"), h("div", { class: "codes" }, byCode)),
    card(h("h3", {}, "By host"), scroller("Failures by host", h("table", { class: "cards" }, h("thead", {}, h("tr", {}, ["Host", "Items", "Failed", "Share that failed", "Codes"].map((head, at) => h("th", { scope: "col", class: at === 1 || at === 2 ? "number" : "" }, head)))), h("tbody", {}, hosts.map(line)))),
      more ? h("p", { class: "faint" }, `and ${counted(more, "more host")} with failures`) : null));
}

function moved() {
  const found = data.moved;
  if (!found) return null;
  const column = (one) => {
    const most = Math.max(1, ...one.moves.map((move) => move.count));
    const show = (move, button) => {
      const line = button.closest("tr");
      const isOpen = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!isOpen));
      if (isOpen) line.nextElementSibling.remove();
      else line.after(h("tr", { class: "examples-of" }, h("td", { colspan: "5" }, sheet("Items that moved", move.items, () => ({ text: "" })))));
    };
    const table = (some) => scroller(`Moves of ${visible(one.column)}`, h("table", { class: "cards moves" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Before"), h("th", { scope: "col" }, "Now"), h("th", { scope: "col", class: "number" }, "Rows"), h("td", {}), h("td", {}))), h("tbody", {}, some.map(line))));
    const line = (move) => h("tr", {}, h("th", { scope: "row" }, own(move.before, 80)), h("td", { "data-label": "Now" }, own(move.now, 80)), h("td", { class: "number", "data-label": "Rows" }, n(move.count)), h("td", { class: "share" }, bar(move.count / most)),
      h("td", {}, h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-label": `Examples of ${visible(move.before).slice(0, 60)} to ${visible(move.now).slice(0, 60)}`, onclick: (event) => show(move, event.currentTarget) }, "Examples")));
    return card(h("h3", {}, h("code", {}, visible(one.column)), h("span", { class: "faint" }, ` ${counted(one.changed, "row")} moved, ${percent(found.both ? one.changed / found.both : 0)}`)),
      one.moves.length ? table(one.moves.slice(0, 12)) : h("p", { class: "empty" }, "Nothing moved."),
      one.moves.length > 12 ? h("details", {}, h("summary", {}, `${n(one.moves.length - 12)} more moves`), table(one.moves.slice(12))) : null,
      one.kinds > one.moves.length ? h("p", { class: "faint" }, `and ${n(one.kinds - one.moves.length)} rarer moves`) : null);
  };
  const lead = h("span", {}, "Compared with ", own(found.before, 120), `: ${counted(found.both, "item")} in both`, found.only_now ? `, ${n(found.only_now)} only here` : "", found.only_before ? `, ${n(found.only_before)} only there` : "", ".");
  return section("moved", "What moved", lead, found.columns.map(column));
}

// ---------------------------------------------------------------- all rows

const PAGE = window.innerWidth < 720 ? 20 : 50;
function list() {
  const all = rows.listed || rows.items.map((_, at) => at);
  const state = { text: "", status: "", label: "", key: "item_index", down: false, page: 0 };
  const set = data.focus ?? 0;
  let haystack = null;
  const text = (at) => {
    haystack = haystack || new Map();
    if (!haystack.has(at)) haystack.set(at, `${cell("item_id", at) ?? ""}\n${cell("uri", at) ?? ""}\n${cell("error_code", at) ?? ""}`.toLowerCase());
    return haystack.get(at);
  };
  const chosen = (at) => (sets.length ? rows.answers[set].chosen[at] : []);
  const score = (at) => (sets.length ? rows.answers[set].scores[at][0] ?? -1 : -1);
  const keys = {
    item_index: (at) => rows.items[at], item_id: (at) => String(cell("item_id", at) ?? ""), status: (at) => `${cell("status", at)} ${cell("error_code", at) ?? ""}`,
    label: (at) => chosen(at).map((label) => labelName(set, label)).join(", "), score,
  };
  const titles = [["item_index", "Index", "number"], ["item_id", "Id", ""], ...(sets.length ? [["label", "Label", ""], ["score", "Best score", "number"]] : []), ["status", "Status", ""]];
  const body = h("tbody", {});
  const count = h("p", { class: "faint", id: "row-count", role: "status" });
  const back = h("button", { type: "button", class: "quiet", onclick: () => { state.page -= 1; draw(); } }, "Previous");
  const next = h("button", { type: "button", class: "quiet", onclick: () => { state.page += 1; draw(); } }, "Next");
  const heads = titles.map(([key, title, kind]) => h("th", { scope: "col", class: kind, "data-key": key }, h("button", { type: "button", class: "sorter", onclick: () => { state.down = state.key === key ? !state.down : key === "score"; state.key = key; change(); } }, title)));
  let found = all;
  function change() {
    const words = state.text.toLowerCase();
    const isIndex = /^\d+$/.test(words);
    found = all.filter((at) => (!words || text(at).includes(words) || (isIndex && rows.items[at] === Number(words))) && (!state.status || (state.status === "failed") === !isOk(at))
      && (state.label === "" || (state.label === "-" ? isOk(at) && !chosen(at).length : chosen(at).includes(Number(state.label)))));
    const key = keys[state.key];
    const sign = state.down ? -1 : 1;
    const values = new Map(found.map((at) => [at, key(at)]));
    found.sort((one, other) => {
      const [a, b] = [values.get(one), values.get(other)];
      return (a < b ? -sign : a > b ? sign : 0) || one - other;
    });
    state.page = 0;
    draw();
  }
  function line(at, place) {
    const open = (event) => detail.open(found, place, event.currentTarget.querySelector("button") || event.currentTarget);
    const status = isOk(at) ? badge(visible(cell("status", at)), "good") : h("span", {}, badge("failed", "bad"), " ", h("code", {}, visible(cell("error_code", at) ?? "")));
    return h("tr", { class: "opens", onclick: open }, h("td", { class: "number", "data-label": "Index" }, rows.items[at]), h("th", { scope: "row" }, h("span", { class: "with-thumb" }, imageOf(at) ? thumb(at, "mini") : null, h("button", { type: "button", class: "plain", onclick: (event) => { event.stopPropagation(); detail.open(found, place, event.currentTarget); } }, own(cell("item_id", at) ?? "", 80)))),
      sets.length ? [h("td", { "data-label": "Label" }, chosen(at).slice(0, 5).map((label, number) => [number ? ", " : "", own(labelName(set, label), 60)]), chosen(at).length ? null : h("span", { class: "faint" }, isOk(at) ? "no label" : "\u2013")), h("td", { class: "number", "data-label": "Best score" }, score(at) < 0 ? "\u2013" : fixed(score(at)))] : null,
      h("td", { "data-label": "Status" }, status));
  }
  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.max(0, Math.min(state.page, pages - 1));
    const from = state.page * PAGE;
    body.replaceChildren(...found.slice(from, from + PAGE).map((at, place) => line(at, from + place)));
    count.textContent = found.length ? `${n(from + 1)}\u2013${n(Math.min(from + PAGE, found.length))} of ${counted(found.length, "row")}` : "No row matches.";
    back.disabled = state.page === 0;
    next.disabled = state.page >= pages - 1;
    for (const head of heads) head.setAttribute("aria-sort", head.dataset.key === state.key ? (state.down ? "descending" : "ascending") : "none");
  }
  const options = sets.length ? sets[set].labels.map((label, at) => [label, at]).filter(([label]) => label.count).sort(([one], [other]) => other.count - one.count) : [];
  change();
  const lead = rows.is_sample ? `A uniform sample of ${n(all.length)} of ${n(about.rows)} rows; figures above are of all rows.` : `All ${counted(about.rows, "row")}.`;
  return section("rows", "Rows", lead, card(h("form", { class: "tools", role: "search", onsubmit: (event) => event.preventDefault() },
    h("input", { type: "search", id: "search", placeholder: "Find an id, URI or error code ( / )", "aria-label": "Find an id, URI or error code", oninput: (event) => { state.text = event.target.value; change(); } }),
    options.length ? h("label", {}, "Label ", h("select", { id: "label-filter", onchange: (event) => { state.label = event.target.value; change(); } }, h("option", { value: "" }, "any"), sets[set].may_be_none ? h("option", { value: "-" }, "no label") : null, options.map(([label, at]) => h("option", { value: at }, shortened(label.name, 60))))) : null,
    h("label", {}, "Status ", h("select", { onchange: (event) => { state.status = event.target.value; change(); } }, [["", "any"], ["ok", "ok"], ["failed", "failed"]].map(([value, title]) => h("option", { value }, title))))),
  scroller("Rows", h("table", { class: "cards rows" }, h("thead", {}, h("tr", {}, heads)), body)), h("div", { class: "pager" }, count, back, next)));
}

// ---------------------------------------------------------------- one row

const detail = {
  list: [], place: 0, from: null, dialog: byId("detail"),
  open(list_, place, from) {
    [this.list, this.place, this.from] = [list_, place, from];
    this.draw();
    this.dialog.showModal();
  },
  draw() {
    const at = this.list[this.place];
    const step = (by) => { this.place = Math.max(0, Math.min(this.list.length - 1, this.place + by)); this.draw(); };
    const fields = [...readers.keys()].map((name) => [name, cell(name, at)]).filter(([, value]) => value != null && value !== "");
    const text = (value) => (typeof value === "object" ? JSON.stringify(value, null, 1) : String(value));
    const button = (title, by, isEnd) => h("button", { type: "button", class: "quiet", disabled: isEnd, onclick: () => { step(by); } }, title);
    this.dialog.replaceChildren(
      h("div", { class: "dialog-head" }, h("h2", { id: "detail-title", tabindex: "-1" }, own(cell("item_id", at) ?? "", 200)),
        h("button", { type: "button", class: "quiet", "data-close": true, onclick: () => this.dialog.close() }, "Close")),
      h("div", { class: "detail" }, h("div", { class: "detail-image" }, thumb(at, "large"), link(at)), h("div", { class: "detail-text" }, sets.map((_, set) => scoresOf(set, at)),
        h("dl", { class: "fields" }, fields.map(([name, value]) => h("div", {}, h("dt", {}, visible(name)), h("dd", {}, own(text(value), 4000))))))),
      h("div", { class: "dialog-foot" }, button("\u2190 Previous", -1, this.place === 0), h("span", { class: "faint" }, `${n(this.place + 1)} of ${n(this.list.length)}`), button("Next \u2192", 1, this.place === this.list.length - 1)));
    this.dialog.querySelector("h2").focus();
  },
  keys(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.place = Math.max(0, Math.min(this.list.length - 1, this.place + by));
    this.draw();
  },
};
function scoresOf(set, at) {
  const said = rows.answers[set];
  if (!said.labels[at] || !said.labels[at].length) return null;
  return h("div", { class: "bars" }, sets.length > 1 ? h("h3", {}, own(sets[set].name, 60)) : null, h("ul", {}, said.labels[at].slice(0, 12).map((label, place) => h("li", { class: said.chosen[at].includes(label) ? "chosen" : "" },
    own(labelName(set, label), 80), bar(said.scores[at][place]), h("span", { class: "figure" }, fixed(said.scores[at][place])), h("span", { class: "unseen" }, said.chosen[at].includes(label) ? "has this label" : "")))));
}

// ---------------------------------------------------------------- marks

const PURPOSES = { fit: "Fit: choose a threshold", certify: "Certify: test a threshold" };
const store = {
  works: true, memory: {},
  key: (purpose) => `clipfleet marks ${purpose} ${about.output} ${about.job_id} ${marking.set}`,
  read(purpose) {
    try {
      return JSON.parse(localStorage.getItem(this.key(purpose)) || "{}");
    } catch (error) {
      this.works = false;
      return this.memory[purpose] || {};
    }
  },
  write(purpose, marks) {
    this.memory[purpose] = marks;
    try {
      localStorage.setItem(this.key(purpose), JSON.stringify(marks));
    } catch (error) { this.works = false; }
  },
  get by() { try { return localStorage.getItem("clipfleet marks by") || ""; } catch (error) { return this.memory.by || ""; } },
  set by(name) { this.memory.by = name; try { localStorage.setItem("clipfleet marks by", name); } catch (error) { this.works = false; } },
};
// Another threshold has another sample, whose marks are not those of this one.
const markKey = (sample, item) => JSON.stringify([sample.label, sample.threshold, rows.items[item[0]]]);
const marksOf = (sample) => { const there = store.read(sample.purpose); return sample.items.map((item) => there[markKey(sample, item)]); };
const cutIds = new Set(marking.cut_ids || []);

function put(sample, item, verdict) {
  const [at, probability, score] = item;
  const marks = store.read(sample.purpose); // as another tab may have left it
  marks[markKey(sample, item)] = {
    item_index: rows.items[at], item_id: cutIds.has(at) ? "" : cell("item_id", at) ?? "", label: sample.label, verdict, purpose: sample.purpose,
    inclusion_probability: probability, by: store.by, at: new Date().toISOString(), content_hash: cell("content_hash", at) ?? "",
    uri: cutIds.has(at) ? "" : cell("uri", at) ?? "", score: score ?? "", threshold: sample.threshold ?? "",
  };
  store.write(sample.purpose, marks);
}
function exported(purpose) {
  const limits = new Map([...marking.samples.filter((one) => one.purpose === purpose), ...(marking.verdicts || [])].map((one) => [one.label, one.threshold]));
  const current = (mark) => purpose === "fit" || limits.get(mark.label) === mark.threshold;
  return Object.values(store.read(purpose)).filter(current);
}
const field = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replace(/"/g, '""')}"` : String(value));
const csv = (marks) => [marking.columns, ...marks.map((mark) => marking.columns.map((name) => mark[name] ?? ""))].map((line) => line.map(field).join(",")).join("\n") + "\n";
function save(purpose) {
  const marks = exported(purpose);
  const url = URL.createObjectURL(new Blob([csv(marks)], { type: "text/csv" }));
  h("a", { href: url, download: `${purpose}-marks.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  say(`Exported ${counted(marks.length, "mark")}`);
}

const marks = {
  body: null,
  section() {
    this.body = h("div", {});
    this.draw();
    return section("mark", "What to mark next", marking.reason || "Samples were drawn when the report was written. Fit marks choose a threshold, certify marks test it.", this.body);
  },
  draw() {
    if (marking.reason) { this.body.replaceChildren(); return; }
    const groups = Object.keys(PURPOSES).map((purpose) => [purpose, marking.samples.filter((one) => one.purpose === purpose)]);
    const isDrawn = (one) => marking.samples.some((sample) => sample.purpose === "certify" && sample.label === one.label);
    const done = (marking.verdicts || []).filter((one) => !isDrawn(one));
    this.body.replaceChildren(...[
      h("div", { class: "tools" }, h("label", {}, "Your name ", h("input", { id: "by", value: store.by, autocomplete: "name", onchange: (event) => { store.by = event.target.value.trim(); } })),
        h("p", { class: "faint small" }, "It stands beside each mark. Marks stay in this browser until you export them.")),
      store.works ? null : h("p", { class: "note warn" }, "This browser keeps no marks for files: export them before you close the page."),
      done.map((one) => h("p", { class: "note" }, badge(one.verdict, { certified: "good", failed: "bad" }[one.verdict] || "warn"), " ", own(one.label, 80), ` ${one.claim} ${one.claim === "precision" ? "\u2265" : "\u2264"} ${one.value}: ${one.reason} (n=${n(one.marks)}, k=${n(one.wrong)})`)),
      marking.left_out ? h("p", { class: "note" }, `Samples of ${counted(marking.left_out, "more label")} are left out: name some with --label.`) : null,
      ...groups.map(([purpose, samples]) => this.group(purpose, samples)),
      h("p", { class: "faint small" }, h("kbd", {}, "y"), " yes, ", h("kbd", {}, "n"), " no, ", h("kbd", {}, "space"), " skip, ", h("kbd", {}, "\u2190"), " ", h("kbd", {}, "\u2192"), " back and forth."),
    ].flat().filter(Boolean));
  },
  group(purpose, samples) {
    const there = exported(purpose).length;
    if (!samples.length && !there) return null;
    const output = /^[\w@%+=:,./-]+$/.test(about.output) ? about.output : "OUTPUT"; // others need quotes in a shell
    const commands = { fit: `clipfleet calibrate ${output} --marks fit-marks.csv -o labels.yaml`, certify: `clipfleet certify ${output} --labels labels.yaml --marks certify-marks.csv` };
    return card(h("div", { class: "tools" }, h("h3", {}, PURPOSES[purpose]), h("button", { type: "button", class: "primary", "data-export": purpose, disabled: !there, onclick: () => save(purpose) }, `Export ${counted(there, "mark")}`)),
      h("ul", { class: "samples" }, samples.map((sample) => this.row(sample))), h("p", { class: "faint small" }, "Then: ", h("code", {}, commands[purpose])));
  },
  row(sample) {
    const marked = marksOf(sample).filter(Boolean).length;
    const left = sample.items.length - marked;
    const plan = sample.plan.length ? h("details", { class: "small" }, h("summary", {}, "How many marks prove it"), h("p", { class: "faint" }, "Marks in all, by how many of them are wrong: ",
      sample.plan.map((one) => `${one.wrong} wrong: ${n(one.marks)}`).join("; "), ". Mark the whole sample: to stop where it would pass voids the confidence.")) : null;
    const limit = sample.threshold == null ? null : h("span", { class: "faint small" }, `threshold ${fixed(sample.threshold, 4)}`);
    return h("li", {}, h("div", { class: "sample" }, h("div", {}, h("b", {}, own(sample.label, 100)), " ", limit, sample.note ? h("span", { class: "faint small" }, `${limit ? ", " : ""}${sample.note}`) : null), bar(marked / sample.items.length),
      h("span", { class: "figure", "data-left": left }, left ? `${n(left)} of ${n(sample.items.length)} still needed` : `all ${n(sample.items.length)} marked`),
      h("button", { type: "button", class: left ? "primary" : "quiet", "data-sample": marking.samples.indexOf(sample), "data-mark": `${sample.purpose} ${shortened(sample.label, 60)}`, "aria-label": `Mark ${visible(sample.label).slice(0, 80)}, ${PURPOSES[sample.purpose]}`, onclick: () => marker.open(sample) }, marked && left ? "Go on" : left ? "Mark" : "Look again")), plan);
  },
};

const marker = {
  sample: null, place: 0, dialog: byId("marker"),
  open(sample) {
    this.sample = sample;
    const first = marksOf(sample).findIndex((mark) => !mark);
    this.place = first < 0 ? 0 : first;
    this.draw();
    this.dialog.showModal();
    this.focus();
  },
  focus() { const stage = this.dialog.querySelector(".stage"); if (stage) stage.focus({ preventScroll: true }); },
  draw() {
    const { sample, place } = this;
    const at = sample.items[place][0];
    const there = marksOf(sample);
    const now = there[place];
    const left = there.filter((mark) => !mark).length;
    const verdict = (value, title, key) => h("button", { type: "button", class: `verdict ${value}`, "data-verdict": value, "aria-pressed": String(Boolean(now && now.verdict === value)), "aria-keyshortcuts": key, onclick: () => this.mark(value) }, title, " ", h("kbd", { "aria-hidden": "true" }, key === "Space" ? "space" : key));
    this.dialog.replaceChildren(
      h("div", { class: "dialog-head" }, h("h2", { id: "marker-title" }, "Does it show ", own(sample.label, 80), "?"), h("button", { type: "button", class: "quiet", "data-close": true, onclick: () => this.dialog.close() }, "Close")),
      h("div", { class: "stage", tabindex: "0", role: "group", "aria-label": `Item ${place + 1} of ${sample.items.length}, ${visible(cell("item_id", at) ?? "").slice(0, 80)}${now ? `, marked ${now.verdict}` : ""}` },
        thumb(at, "large"), h("p", {}, own(cell("item_id", at) ?? "", 100), " ", link(at))),
      h("div", { class: "verdicts" }, verdict("yes", "Yes", "y"), verdict("no", "No", "n"), verdict("skip", "Skip", "Space")),
      h("div", { class: "dialog-foot" }, h("button", { type: "button", class: "quiet", disabled: place === 0, onclick: () => this.go(-1) }, "\u2190 Back"),
        h("span", { class: "faint", id: "marker-count" }, `${n(place + 1)} of ${n(sample.items.length)}, ${left ? `${n(left)} still needed` : "all marked"}`), bar(1 - left / sample.items.length),
        h("button", { type: "button", class: "quiet", disabled: place === sample.items.length - 1, onclick: () => this.go(1) }, "Next \u2192")));
  },
  go(by) {
    this.place = Math.max(0, Math.min(this.sample.items.length - 1, this.place + by));
    this.draw();
    this.focus();
  },
  mark(verdict) {
    put(this.sample, this.sample.items[this.place], verdict);
    const left = marksOf(this.sample).filter((mark) => !mark).length;
    say(`${verdict}. ${left ? `${n(left)} still needed` : "All marked"}`);
    this.go(this.place < this.sample.items.length - 1 ? 1 : 0);
  },
  keys(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const onButton = document.activeElement && document.activeElement.tagName === "BUTTON";
    const verdict = { y: "yes", n: "no", " ": onButton ? null : "skip" }[event.key.toLowerCase()]; // space presses a button that has the focus
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!verdict && !by) return;
    event.preventDefault();
    if (event.repeat) return;
    if (verdict) this.mark(verdict); else this.go(by);
  },
};

// ---------------------------------------------------------------- the page

const theme = {
  names: ["auto", "light", "dark"],
  get now() { try { return localStorage.getItem("clipfleet theme") || "auto"; } catch (error) { return document.documentElement.dataset.theme || "auto"; } },
  apply(name) {
    document.documentElement.dataset.theme = name;
    byId("theme").textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[name];
    try { localStorage.setItem("clipfleet theme", name); } catch (error) { /* the choice lasts as long as the page */ }
  },
};

function start() {
  theme.apply(theme.names.includes(theme.now) ? theme.now : "auto");
  byId("theme").addEventListener("click", () => theme.apply(theme.names[(theme.names.indexOf(document.documentElement.dataset.theme) + 1) % 3]));
  const parts = [summary(), labels(), sheets.section(), decisions(), moved(), failures(), marks.section(), list()];
  byId("main").replaceChildren(...parts.filter(Boolean));
  byId("nav").replaceChildren(h("ul", {}, order.map(([id, title]) => h("li", {}, h("a", { href: `#${id}` }, title)))));
  byId("foot").replaceChildren(`Written by clipfleet ${about.clipfleet}, ${when(about.made_at)}. This file loads nothing and sends nothing.`);
  for (const one of [detail, marker]) {
    one.dialog.addEventListener("click", (event) => { if (event.target === one.dialog) one.dialog.close(); });
  }
  detail.dialog.addEventListener("close", () => { if (detail.from && detail.from.isConnected) detail.from.focus(); });
  marker.dialog.addEventListener("close", () => {
    marks.draw();
    const button = document.querySelector(`[data-sample="${marking.samples.indexOf(marker.sample)}"]`);
    if (button) button.focus();
  });
  document.addEventListener("keydown", (event) => {
    const open = [marker, detail].find((one) => one.dialog.open); // the focus may be outside of it after a click
    if (open) { open.keys(event); return; }
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); byId("search").focus(); }
  });
}
start();
})();
