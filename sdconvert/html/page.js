"use strict";
// Draws the page from the document in #data, which is what `sdconvert inspect --json` prints.
// Names come from files that strangers wrote: they are only ever set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const id = (name) => document.getElementById(name);
  const DEPTH = 64; // Modules inside modules; deeper names stay whole.
  const CELLS = [400, 200, 60, 24]; // Children that get a cell of their own, by level; the smaller ones share one.
  const LEAST = 3; // Pixels; what is narrower is not drawn.
  const ROWS = 200; // Tensors that the table shows at once.
  const LISTED = 200; // Lines of a list.
  const TIED = 30; // Names of one tensor.
  const HUES = [255, 155, 65, 320, 200, 25, 110, 285, 350];

  // Controls, marks of direction and other characters that show as nothing or as something else are spelled out.
  const shown = (text) => text.replace(/[\p{C}\p{Z}]/gu, (c) => (c === " " ? c : `\\u{${c.codePointAt(0).toString(16)}}`));
  const number = (n) => n.toLocaleString("en-US");
  const plural = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;
  const percent = (part, whole) => `${whole ? ((100 * part) / whole).toFixed(part === whole ? 0 : 1) : 0} %`;
  const shape = (sizes) => `[${sizes.join(", ")}]`;

  function scaled(n, units, separator) {
    let at = 0;
    for (; n >= 999.5 && at < units.length - 1; at++) n /= 1000;
    return (at ? n.toPrecision(3) : number(n)) + separator + units[at];
  }
  const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB"], "\u00a0");
  const count = (n) => scaled(n, ["", "k", "M", "B", "T"], "");

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  const code = (text) => el("code", null, shown(text));
  const cell = (text, kind) => el("td", kind ? { class: kind } : null, text);

  // ---- What is in the file ----

  const KINDS = {
    module: "a whole pickled model", wrapped: "a state dict inside a checkpoint", state_dict: "a state dict",
    tensor: "a single tensor", torchscript: "a TorchScript model", several: "several state dicts", nothing: "no weights",
  };

  function header() {
    const where = data.key ? `, at ${shown(data.key)}` : "";
    const made = data.version ? ` (${shown(data.version)})` : "";
    const [directory, name] = data.source.split(/([^/]*)$/);
    id("source").append(el("small", null, shown(directory)), shown(name));
    id("about").textContent = `${data.container}${made}: ${KINDS[data.kind] || data.kind}${where}`;
    const tied = Object.keys(data.aliases).length;
    const tiles = [
      ["Parameters", count(data.parameters), number(data.parameters)],
      ["Tensors", number(data.tensors.length - tied), tied ? `and ${number(tied)} tied to them` : "none tied"],
      ["Weights", bytes(data.bytes), data.dtypes.slice(0, 3).map((one) => one.dtype).join(", ")],
      ["File now", bytes(data.source_bytes), data.container],
      data.output_bytes === null
        ? ["As safetensors", "\u2014", "see the problems below"]
        : ["As safetensors", bytes(data.output_bytes), change(data.output_bytes, data.source_bytes)],
    ];
    for (const [title, value, note] of tiles) {
      id("tiles").append(el("div", null, el("dt", null, title), el("dd", null, value, el("small", null, note))));
    }
    const bad = data.globals.dangerous;
    if (bad.length) {
      const names = bad.slice(0, 3).map(shown).join(", ") + (bad.length > 3 ? `, and ${number(bad.length - 3)} more` : "");
      id("problems").append(el("li", null, el("b", null, "Dangerous-looking: "), `the pickle names ${names}. `,
        el("a", { href: "#globals" }, "What that means")));
    }
    for (const text of data.problems) id("problems").append(el("li", null, el("b", null, "Problem: "), shown(text)));
    for (const text of data.warnings.slice(0, LISTED)) id("warnings").append(el("li", null, el("b", null, "Warning: "), shown(text)));
    if (data.prefixes.length) {
      const text = `the names carry ${data.prefixes.map(shown).join(" ")}; --strip-prefix auto takes it off.`;
      id("warnings").append(el("li", null, el("b", null, "Prefix: "), text));
    }
  }

  function change(after, before) {
    const less = 1 - after / before;
    return Math.abs(less) < 0.005 ? "as large as now" : `${percent(Math.abs(less), 1)} ${less > 0 ? "smaller" : "larger"}`;
  }

  function columns(section, titles) {
    const row = el("tr", null, ...titles.map(([title, kind]) => el("th", { scope: "col", class: kind }, title)));
    document.querySelector(`#${section} thead`).append(row);
    return document.querySelector(`#${section} tbody`);
  }

  function candidates() {
    if (data.candidates.length < 2) return;
    id("candidates").hidden = false;
    const body = columns("candidates", [
      ["Key"], ["Kind"], ["Tensors", "number"], ["Parameters", "number"], ["Size", "number"],
    ]);
    for (const one of data.candidates) {
      const chosen = data.kind !== "several" && one.key === (data.key || ".");
      const name = cell(`--key ${shown(one.key)}`, "name");
      if (chosen) name.append(el("small", null, "shown here"));
      body.append(el("tr", chosen ? { class: "chosen" } : null, name, cell(KINDS[one.kind] || one.kind),
        cell(number(one.tensors), "number"), cell(one.parameters === null ? "" : number(one.parameters), "number"),
        cell(bytes(one.bytes), "number")));
    }
  }

  function dtypes() {
    const body = columns("dtypes", [["Dtype"], ["Tensors", "number"], ["Parameters", "number"], ["Size", "number"], ["", "number"]]);
    data.dtypes.forEach((one, at) => {
      const hue = HUES[at % HUES.length];
      const part = el("i");
      part.style.setProperty("--hue", hue);
      part.style.flex = `${one.bytes} 0 0`;
      if (one.bytes) id("shares").append(part);
      const swatch = el("span", { class: "swatch" });
      swatch.style.setProperty("--hue", hue);
      const only = el("button", { type: "button", class: "link", title: "Show these tensors", onclick: () => show(one.dtype) }, one.dtype);
      body.append(el("tr", null, el("td", null, swatch, only), cell(number(one.tensors), "number"),
        cell(number(one.parameters), "number"), cell(bytes(one.bytes), "number"), cell(percent(one.bytes, data.bytes), "number")));
    });
  }

  /** The lines of a list, the rest as a number; or a sentence where there are none. */
  function list(section, items, line, empty) {
    const box = document.querySelector(`#${section} .list`);
    if (!items.length) return box.append(el("p", null, empty));
    box.append(lines(items, line));
    return box;
  }

  function lines(items, line) {
    const rest = items.length > LISTED ? [el("li", null, `and ${number(items.length - LISTED)} more`)] : [];
    return el("ul", null, ...items.slice(0, LISTED).map((item) => el("li", null, ...line(item))), ...rest);
  }

  function ties() {
    const groups = new Map();
    for (const [alias, kept] of Object.entries(data.aliases)) {
      if (!groups.has(kept)) groups.set(kept, [kept]);
      groups.get(kept).push(alias);
    }
    list("ties", [...groups.values()], (names) => [
      ...names.slice(0, TIED).flatMap((name, at) => [
        at ? " = " : "", el("button", { type: "button", class: "link", onclick: () => find(name) }, code(name)),
      ]),
      names.length > TIED ? ` = ${number(names.length - TIED)} more` : "",
    ], "Every name has a tensor of its own.");
  }

  function globals() {
    const { known, unknown, dangerous } = data.globals;
    const box = document.querySelector("#globals .list");
    const bad = new Set(dangerous);
    const harmless = unknown.filter((name) => !bad.has(name));
    if (dangerous.length) {
      box.append(el("h3", { class: "danger" }, `${number(dangerous.length)} look${dangerous.length === 1 ? "s" : ""} dangerous`),
        el("p", null, "No model needs these, and Python's own unpickler, and so torch.load(weights_only=False), would call " +
          "them with whatever the file says. sdconvert only read their names."),
        lines(dangerous, (name) => [code(name)]));
    }
    if (harmless.length) {
      box.append(el("h3", { class: "unknown" }, `${number(harmless.length)} unknown`),
        el("p", null, "Classes of whoever made the file. They are not needed here."), lines(harmless, (name) => [code(name)]));
    }
    if (known.length) {
      box.append(el("details", null, el("summary", null, `${number(known.length)} known and harmless`), lines(known, (name) => [code(name)])));
    }
    if (!known.length && !unknown.length) box.append(el("p", null, "This file has no pickle, or one that names nothing."));
  }

  function leftOut() {
    list("skipped", data.skipped, (one) => [code(one.name), " ", el("small", null, shown(one.why))], "Nothing.");
    list("metadata", Object.entries(data.metadata), ([key, value]) => [code(key), " ", el("small", null, shown(value.slice(0, 500)))], "");
    id("metadata").hidden = !Object.keys(data.metadata).length;
  }

  // ---- The tree of modules ----

  /** What has one name: a tensor, or what lies below it. Tied names are there, and count nothing. */
  function tree() {
    const root = { label: "", path: "", parent: null, below: new Map(), children: [], tensor: null, elements: 0, bytes: 0, tensors: 0 };
    const branch = (parent, label, path) => ({ ...root, label, path, parent, below: new Map(), children: [] });
    for (const tensor of data.tensors) {
      const parts = tensor.name.split(".");
      if (parts.length > DEPTH) parts.push(parts.splice(DEPTH - 1).join("."));
      let node = root;
      parts.forEach((part, at) => {
        if (!node.below.has(part)) node.below.set(part, branch(node, part, node === root ? part : `${node.path}.${part}`));
        node = node.below.get(part);
        if (at === parts.length - 1) {
          const leaf = branch(node.parent, part, tensor.name); // Beside the module of the same name, if there is one.
          leaf.tensor = tensor;
          node.parent.children.push(leaf);
        } else if (at < parts.length - 1 && node.below.size === 0) {
          node.parent.children.push(node);
        }
      });
    }
    const sum = (node) => {
      if (node.tensor) {
        const own = node.tensor.tied_to === null;
        [node.tensors, node.elements, node.bytes] = [1, own ? node.tensor.parameters : 0, own ? node.tensor.bytes : 0];
        return;
      }
      while (node.children.length === 1 && !node.children[0].tensor) { // A module around one module is no step of its own.
        const only = node.children[0];
        node.label = node.label ? `${node.label}.${only.label}` : only.label;
        node.path = only.path;
        node.children = only.children;
      }
      for (const child of node.children) {
        child.parent = node;
        sum(child);
        node.tensors += child.tensors;
        node.elements += child.elements;
        node.bytes += child.bytes;
      }
    };
    sum(root);
    return root;
  }

  // ---- The treemap ----

  const root = tree();
  let here = root;
  let cells = [];
  const hues = new Map(); // Alike names (0, 1, 2; q_proj in every layer) have one colour, wherever one is.

  /** The largest children, and one entry for all the others. */
  function largest(node, most) {
    const drawn = node.children.filter((child) => child.elements > 0).sort((a, b) => b.elements - a.elements);
    if (drawn.length <= most) return drawn;
    const rest = { label: `${number(drawn.length - most + 1)} smaller`, rest: true, parent: node, children: [], elements: 0, bytes: 0, tensors: 0 };
    for (const child of drawn.slice(most - 1)) {
      rest.elements += child.elements;
      rest.bytes += child.bytes;
      rest.tensors += child.tensors;
    }
    return [...drawn.slice(0, most - 1), rest];
  }

  /** What is drawn below a module; nothing where one tensor is nearly all of it. */
  function inside(node, level) {
    const children = level < CELLS.length ? largest(node, CELLS[level]) : [];
    const whole = level && children.length && children[0].tensor && children[0].elements > 0.97 * node.elements;
    return whole ? [] : children.map((child) => {
      const below = inside(child, level + 1);
      return { node: child, value: below.length ? 0 : child.elements, children: below };
    });
  }

  const size = (box) => [box.x1 - box.x0, box.y1 - box.y0];
  /** Whether there is room for a label, and for what is inside. */
  const isOpen = (box) => Boolean(box.children) && box.depth > 0 && size(box)[0] > 44 && size(box)[1] > 36;

  function draw() {
    const box = id("treemap");
    const top = inside(here, 0);
    cells = [];
    if (!top.length) return box.replaceChildren(el("p", null, "There are no parameters to draw."));
    const layout = d3.hierarchy({ children: top }).sum((one) => one.value || 0).sort((a, b) => b.value - a.value);
    const edge = (one) => (isOpen(one) ? 3 : 0);
    // d3 asks for the padding of a box when it has placed it.
    d3.treemap().size([box.clientWidth, box.clientHeight]).paddingInner(2).round(true)
      .paddingTop((one) => (isOpen(one) ? 20 : 0)).paddingRight(edge).paddingBottom(edge).paddingLeft(edge)(layout);
    const hue = ({ node }) => {
      const module = node.tensor && node.parent !== here ? node.parent : node;
      const kind = (/^[0-9]+$/.test(module.label) ? `${module.parent.label}.` : "") + module.label.replace(/[0-9]+/g, "#");
      if (!hues.has(kind)) hues.set(kind, HUES[hues.size % HUES.length]);
      return hues.get(kind);
    };
    cells = layout.children.map((one) => {
      const cell = el("button", { type: "button", class: "cell", "aria-label": told(one.data.node) });
      fill(cell, one, layout, hue);
      return cell;
    });
    cells.forEach((one, at) => { one.tabIndex = at ? -1 : 0; });
    return box.replaceChildren(...cells);
  }

  /** Give the element of a box its place, colour and label, and what is inside. */
  function fill(element, one, around, hue) {
    const { node } = one.data;
    const [width, height] = size(one);
    element.node = node;
    element.style.left = `${one.x0 - around.x0}px`;
    element.style.top = `${one.y0 - around.y0}px`;
    element.style.width = `${width}px`;
    element.style.height = `${height}px`;
    element.classList.toggle("rest", Boolean(node.rest));
    element.classList.toggle("open", isOpen(one));
    if (!isOpen(one)) element.style.setProperty("--hue", hue(one.data));
    if (width > 26 && height > 15) {
      const label = el("span", { class: "label", "aria-hidden": "true" }, shown(node.label));
      if (width > 90) label.append(el("small", null, count(node.elements)));
      element.append(label);
    }
    for (const below of isOpen(one) ? one.children : []) {
      if (Math.min(...size(below)) < LEAST) continue;
      const inner = el("span", { class: "inner", "aria-hidden": "true" });
      fill(inner, below, one, hue);
      element.append(inner);
    }
  }

  /** A node in words. */
  function told(node) {
    const share = `${percent(node.elements, here.elements)} of ${here === root ? "all" : shown(here.path)}`;
    const size = `${number(node.elements)} parameters, ${bytes(node.bytes)}, ${share}`;
    if (node.rest) return `${node.label}: ${size}`;
    if (node.tensor) return `${shown(node.path)}: ${node.tensor.dtype} ${shape(node.tensor.shape)}, ${size}`;
    return `${shown(node.path)}: ${plural(node.tensors, "tensor")}, ${size}`;
  }

  function detail(node) {
    const [name, ...rest] = told(node).split(/(?=: )/);
    id("detail").replaceChildren(el("b", null, name), rest.join(""));
  }

  function trail() {
    const steps = [];
    for (let node = here; node; node = node.parent) steps.unshift(node);
    id("trail").replaceChildren(...steps.map((node) => {
      const label = node === root ? `all${root.path ? ` (${shown(root.path)})` : ""}` : shown(node.label);
      const step = node === here
        ? el("span", { "aria-current": "location" }, label)
        : el("button", { type: "button", class: "link", onclick: () => go(node) }, label);
      return el("li", null, step);
    }));
  }

  /** Show the module `node`, in the treemap and in the table. */
  function go(node) {
    const from = here;
    here = node;
    trail();
    draw();
    id("treemap").className = node === root || isBelow(from, node) ? "out" : "in";
    id("detail").replaceChildren(`${plural(here.tensors, "tensor")}, ${number(here.elements)} parameters, ${bytes(here.bytes)}`);
    table.refresh();
    if (!cells.length) return;
    // Coming back out, the focus is where one went in.
    let at = from;
    while (at && at.parent !== here) at = at.parent;
    focus(cells.find((one) => one.node === at) || cells[0]);
  }

  function isBelow(node, above) {
    for (; node; node = node.parent) if (node === above) return true;
    return false;
  }

  function focus(cell) {
    for (const one of cells) one.tabIndex = one === cell ? 0 : -1;
    cell.focus({ preventScroll: true });
  }

  function enter(node) {
    if (node.rest) return;
    if (node.tensor) find(node.path);
    else go(node);
  }

  /** The nearest cell in the direction of an arrow key. */
  function beside(cell, key) {
    const middle = (one) => [one.offsetLeft + one.offsetWidth / 2, one.offsetTop + one.offsetHeight / 2];
    const [x, y] = middle(cell);
    const across = key === "ArrowLeft" || key === "ArrowRight";
    const forward = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    let [best, least] = [null, Infinity];
    for (const one of cells) {
      const [dx, dy] = [middle(one)[0] - x, middle(one)[1] - y];
      const [ahead, aside] = across ? [dx * forward, Math.abs(dy)] : [dy * forward, Math.abs(dx)];
      if (ahead > 0 && ahead + 2 * aside < least) [best, least] = [one, ahead + 2 * aside];
    }
    return best;
  }

  function listen() {
    const box = id("treemap");
    const named = (event) => event.target.closest(".inner, .cell");
    box.addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) enter(cell.node);
    });
    box.addEventListener("pointerover", (event) => { if (named(event)) detail(named(event).node); });
    box.addEventListener("focusin", (event) => detail(event.target.node));
    box.addEventListener("keydown", (event) => {
      const cell = document.activeElement;
      if (event.key === "Escape" || event.key === "Backspace") {
        if (here.parent) go(here.parent);
      } else if (event.key === "Home" || event.key === "End") {
        focus(cells[event.key === "Home" ? 0 : cells.length - 1]);
      } else if (event.key.startsWith("Arrow")) {
        focus(beside(cell, event.key) || cell);
      } else {
        return;
      }
      event.preventDefault();
    });
    document.addEventListener("keydown", (event) => {
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
        id("filter").focus();
        event.preventDefault();
      }
    });
    let width = box.clientWidth;
    new ResizeObserver(() => {
      if (box.clientWidth !== width) draw();
      width = box.clientWidth;
    }).observe(box);
  }

  // ---- The table of tensors ----

  const collator = new Intl.Collator("en", { numeric: true });
  const COLUMNS = [
    { title: "#", kind: "number", of: (one) => one.place, show: (one) => number(one.place) },
    { title: "Name", kind: "name", of: (one) => one.name, show: (one) => shown(one.name) },
    { title: "Dtype", kind: "", of: (one) => one.dtype, show: (one) => one.dtype },
    { title: "Shape", kind: "shape", of: (one) => one.shape.length, show: (one) => shape(one.shape) },
    { title: "Parameters", kind: "number", of: (one) => one.parameters, show: (one) => number(one.parameters) },
    { title: "Size", kind: "number size", of: (one) => one.bytes, show: (one) => bytes(one.bytes) },
  ];

  class Table {
    constructor() {
      this.sorted = { column: 0, direction: 1 };
      this.rows = [];
      this.body = document.querySelector("#tensors tbody");
      this.headers = COLUMNS.map((column, at) => el("th", { scope: "col", class: column.kind },
        el("button", { type: "button", onclick: () => this.sort(at) }, column.title)));
      document.querySelector("#tensors thead").append(el("tr", null, ...this.headers));
      data.tensors.forEach((one, at) => { one.place = at + 1; one.lower = one.name.toLowerCase(); });
      const names = [...new Set(data.tensors.map((one) => one.dtype))];
      id("only").append(el("option", { value: "" }, "all"), ...names.map((name) => el("option", { value: name }, name)));
      id("filter").addEventListener("input", () => this.refresh());
      id("only").addEventListener("input", () => this.refresh());
      id("more").addEventListener("click", () => this.grow());
    }

    sort(column) {
      const first = column === 4 || column === 5 ? -1 : 1; // Of sizes, one wants the largest.
      const again = this.sorted.column === column;
      this.sorted = { column, direction: again ? -this.sorted.direction : first };
      this.refresh();
    }

    refresh() {
      const words = id("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      const dtype = id("only").value;
      const inside = below(here);
      const { column, direction } = this.sorted;
      const { of } = COLUMNS[column];
      const compare = column === 1 || column === 2 ? collator.compare : (a, b) => a - b;
      this.rows = inside.filter((one) => (!dtype || one.dtype === dtype) && words.every((word) => one.lower.includes(word)));
      this.rows.sort((a, b) => direction * compare(of(a), of(b)) || a.place - b.place);
      this.headers.forEach((header, at) => {
        if (at === column) header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else header.removeAttribute("aria-sort");
      });
      const where = here === root ? "" : ` in ${shown(here.path)}`;
      id("count").textContent = `${number(this.rows.length)} of ${plural(inside.length, "tensor")}${where}`;
      this.largest = this.rows.reduce((most, one) => Math.max(most, one.bytes), 0);
      this.body.replaceChildren();
      this.grow();
    }

    grow() {
      const from = this.body.children.length;
      this.body.append(...this.rows.slice(from, from + ROWS).map((one) => this.row(one)));
      const left = this.rows.length - this.body.children.length;
      id("more").hidden = !left;
      id("more").textContent = `Show ${number(Math.min(left, ROWS))} more of ${number(left)}`;
    }

    row(one) {
      const row = el("tr", null, ...COLUMNS.map((column) => cell(column.show(one), column.kind || null)));
      const bar = el("i", { class: "bytes", "aria-hidden": "true" });
      bar.style.width = `${this.largest ? (100 * one.bytes) / this.largest : 0}%`;
      row.children[5].append(bar);
      if (one.tied_to !== null) row.children[1].append(el("small", null, `tied to ${shown(one.tied_to)}`));
      if (!one.contiguous) row.children[3].append(el("small", null, "not contiguous"));
      return row;
    }
  }

  /** The tensors of a module, tied names too. */
  function below(node) {
    if (node === root) return [...data.tensors];
    const found = [];
    const visit = (one) => { if (one.tensor) found.push(one.tensor); else one.children.forEach(visit); };
    visit(node);
    return found;
  }

  /** Show the tensors of one dtype in the table. */
  function show(dtype) {
    id("filter").value = "";
    id("only").value = dtype;
    table.refresh();
    id("tensors").scrollIntoView({ block: "start" });
  }

  /** Show one tensor in the table. */
  function find(name) {
    if (!below(here).some((one) => one.name === name)) go(root);
    id("filter").value = name;
    id("only").value = "";
    table.refresh();
    id("filter").focus({ preventScroll: true });
    id("tensors").scrollIntoView({ block: "start" });
  }

  id("main").hidden = false;
  header();
  candidates();
  dtypes();
  globals();
  ties();
  leftOut();
  const table = new Table();
  trail();
  draw();
  listen();
  table.refresh();
  id("detail").textContent = "Point at a module, or move to it, to see its size.";
})();
