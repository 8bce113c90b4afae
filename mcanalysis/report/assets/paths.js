// Score and loss along a path, with a slider that walks over the measured points.
const TASK_WORDS = { mean_old: "old tasks (mean)", mean: "½ (old + new)" };
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "pentagon", "star"];
const DASHES = ["dash", "dot", "dashdot", "longdash", "longdashdot"];
const SVG_DASHES = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4", longdashdot: "10 3 2 3" };

class PathPanel {
  constructor(root, paths) {
    this.root = root;
    this.paths = paths;
    this.chart = part(root, "chart");
    this.slider = control(root, "t");
    fillSelect(control(root, "transition"), paths.map((path) => path.title));
    control(root, "transition").addEventListener("change", () => this.choosePath());
    control(root, "kind").addEventListener("change", () => this.chooseKind());
    control(root, "lines").addEventListener("change", () => this.show());
    this.slider.addEventListener("input", () => this.walk());
    part(root, "values").addEventListener("toggle", () => this.fillAll());
    this.choosePath();
    registerChart(this.chart, () => this.draw());
  }

  get path() { return this.paths[control(this.root, "transition").value]; }
  get kind() { return this.path.kinds[control(this.root, "kind").value]; }
  get t() { return this.kind.t[this.slider.value]; }

  // From where to where was measured: [0, 1], and what lies beyond the ends.
  get reach() { return [Math.min(0, this.kind.t[0]), Math.max(1, this.kind.t[this.kind.t.length - 1])]; }

  choosePath() {
    const before = this.chosenKind;
    const labels = this.path.kinds.map((kind) => kind.label);
    fillSelect(control(this.root, "kind"), labels);
    if (labels.includes(before)) control(this.root, "kind").value = labels.indexOf(before);
    part(this.root, "start").textContent = this.path.start;
    part(this.root, "end").textContent = this.path.end;
    this.chooseKind();
  }

  chooseKind() {
    this.chosenKind = this.kind.label;
    const share = Number(this.slider.value) / Number(this.slider.max);
    this.slider.max = this.kind.t.length - 1;
    this.slider.value = Math.round((this.started ? share : 0.5) * (this.kind.t.length - 1));
    this.started = true;
    this.show();
  }

  show() {
    this.fillLegend();
    this.fillReadout();
    this.fillAll();
    this.describe();
    if (CHARTS.has(this.chart)) refresh(this.chart);
  }

  // The tasks that are drawn, with how: the means and the new task, or every task.
  lines() {
    const names = Object.keys(this.kind.tasks);
    const old = { name: "mean_old", colour: "old", symbol: "square", scoreOnly: false };
    const mean = { name: "mean", colour: "mean", symbol: "star", scoreOnly: true };
    const own = { name: this.path.new, colour: "new", symbol: "circle", scoreOnly: false };
    const roles = [old, own, mean].filter((line) => names.includes(line.name));
    const each = names.filter((name) => !(name in TASK_WORDS)).map((name, i) => (
      { name, colour: `t${(i % 8) + 1}`, symbol: SYMBOLS[i % 8], scoreOnly: false }));
    return control(this.root, "lines").value === "roles" && roles.length ? roles : each;
  }

  words(name) { return TASK_WORDS[name] ?? (name === this.path.new ? `${name} (new)` : name); }

  dash(kind) { return kind === this.kind ? "solid" : DASHES[this.path.kinds.filter((k) => k !== this.kind).indexOf(kind) % DASHES.length]; }

  draw() {
    const traces = [];
    for (const quantity of ["score", "loss"]) {
      const yaxis = quantity === "score" ? "y" : "y2";
      for (const line of this.lines()) {
        if (quantity === "loss" && line.scoreOnly) continue;
        for (const kind of this.path.kinds) traces.push(...this.traces(kind, line, quantity, yaxis));
      }
    }
    const [low, high] = this.reach;
    const margin = 0.02 * (high - low);
    const selected = { ...axis(), title: { text: "t", standoff: 6 }, range: [low - margin, high + margin], anchor: "y2", unifiedhovertitle: { text: "t = %{x:.3~f}" } };
    const figure = layout({
      hovermode: "x unified", hoverdistance: -1, xaxis: selected, margin: { l: 58, r: 12, t: COARSE.matches ? 8 : 28, b: 44 },
      yaxis: axis({ domain: [0.54, 1], range: [-0.04, 1.04], title: { text: "score (0–1)" } }),
      yaxis2: axis({ domain: [0, 0.46], rangemode: "tozero", title: { text: "loss (nats/token)" } }),
      shapes: this.shapes(),
    });
    return Plotly.react(this.chart, traces, figure, config()).then(() => {
      if (this.clickable) return;
      this.clickable = true;
      this.chart.on("plotly_click", (event) => this.goTo(event.points[0].x));
    });
  }

  traces(kind, line, quantity, yaxis) {
    const values = kind.tasks[line.name];
    if (!values) return [];
    const tone = colour(line.colour);
    const chosen = kind === this.kind;
    const shared = { x: values.t, yaxis, type: "scatter", hoverinfo: "skip" };
    if (!chosen) {
      return [{ ...shared, y: values[quantity], mode: "lines", opacity: 0.65, line: { color: tone, width: 1.3, dash: this.dash(kind) } }];
    }
    const band = faded(tone, line.scoreOnly ? 0 : 0.14);
    const edge = { ...shared, mode: "lines", line: { width: 0, color: band } };
    const spread = values[`${quantity}_low`].map((low, i) => `${shown(low)} … ${shown(values[`${quantity}_high`][i])}`);
    return [
      { ...edge, y: values[`${quantity}_low`] },
      { ...edge, y: values[`${quantity}_high`], fill: "tonexty", fillcolor: band },
      { ...shared, y: values[quantity], mode: "lines+markers", hoverinfo: "all", name: inert(`${this.words(line.name)}, ${quantity}`),
        line: { color: tone, width: 2.4 }, marker: { symbol: line.symbol, size: 7, color: tone }, customdata: spread,
        hovertemplate: "%{y:.3f} [%{customdata}]" },
    ];
  }

  shapes() {
    const upright = (t, line, yref) => ({ type: "line", x0: t, x1: t, y0: 0, y1: 1, yref, line });
    const [low, high] = this.reach;
    const beyond = [[low, 0], [1, high]].filter(([from, to]) => from < to).map(([x0, x1]) => (
      { type: "rect", x0, x1, y0: 0, y1: 1, yref: "paper", layer: "below", line: { width: 0 }, fillcolor: faded(colour("soft"), 0.12) }));
    const found = [...beyond, upright(this.t, { color: colour("mark"), width: 2 }, "paper")];
    if (this.kind.t_star !== null) found.push(upright(this.kind.t_star, { color: colour("mean"), width: 1.3, dash: "dot" }, "y domain"));
    return found;
  }

  walk() {
    this.fillReadout();
    if (CHARTS.get(this.chart)?.drawn) Plotly.relayout(this.chart, { shapes: this.shapes() });
  }

  goTo(t) {
    const distances = this.kind.t.map((other) => Math.abs(other - t));
    this.slider.value = distances.indexOf(Math.min(...distances));
    this.walk();
  }

  at(name, t) {
    const values = this.kind.tasks[name];
    const i = values.t.indexOf(t);
    return (quantity) => (i < 0 ? null : values[quantity][i]);
  }

  fillReadout() {
    const table = part(this.root, "readout");
    const body = element("tbody");
    const said = [];
    for (const line of this.lines()) {
      const value = this.at(line.name, this.t);
      const row = element("tr");
      row.append(element("th", this.words(line.name), { scope: "row" }));
      for (const quantity of ["score", "loss"]) {
        const cell = element("td", shown(value(quantity), 3), { class: "number" });
        cell.append(element("small", `${shown(value(`${quantity}_low`))} … ${shown(value(`${quantity}_high`))}`));
        row.append(cell);
      }
      body.append(row);
      said.push(`${this.words(line.name)}: score ${shown(value("score"))}, loss ${shown(value("loss"))}`);
    }
    const head = element("thead");
    head.append(element("tr"));
    head.rows[0].append(element("th", "task", { scope: "col" }),
      ...["score", "loss"].map((name) => element("th", name, { scope: "col", class: "number" })));
    table.replaceChildren(element("caption", "Below each value its 95 % interval"), head, body);
    const star = this.kind.t_star === null ? "" : `; t* = ${place(this.kind.t_star)}`;
    part(this.root, "at").textContent = `t = ${place(this.t)} (point ${Number(this.slider.value) + 1} of ${this.kind.t.length}${star})`;
    this.slider.setAttribute("aria-valuetext", `t = ${place(this.t)}. ${said.join("; ")}`);
  }

  fillAll() {
    if (!part(this.root, "values").open) return;
    const lines = this.lines();
    const head = element("thead");
    head.append(element("tr"));
    head.rows[0].append(element("th", "t", { scope: "col" }));
    for (const line of lines) {
      for (const quantity of ["score", "loss"]) head.rows[0].append(element("th", `${this.words(line.name)}, ${quantity}`, { scope: "col" }));
    }
    const body = element("tbody");
    for (const t of this.kind.t) {
      const row = element("tr");
      row.append(element("th", place(t), { scope: "row" }));
      for (const line of lines) {
        for (const quantity of ["score", "loss"]) row.append(element("td", shown(this.at(line.name, t)(quantity), 3), { class: "number" }));
      }
      body.append(row);
    }
    part(this.root, "all").replaceChildren(element("caption", `${this.path.title}, ${this.kind.label}`), head, body);
  }

  fillLegend() {
    const items = this.lines().map((line) => this.legendItem(this.words(line.name), colour(line.colour), 2.4, "solid"));
    for (const kind of this.path.kinds) {
      const chosen = kind === this.kind;
      items.push(this.legendItem(kind.label + (chosen ? " (chosen)" : ""), colour("soft"), chosen ? 2.4 : 1.3, this.dash(kind)));
    }
    part(this.root, "legend").replaceChildren(...items);
  }

  legendItem(text, tone, width, dash) {
    const space = "http://www.w3.org/2000/svg";
    const picture = document.createElementNS(space, "svg");
    const line = document.createElementNS(space, "line");
    for (const [name, value] of Object.entries({ width: 30, height: 10, "aria-hidden": "true" })) picture.setAttribute(name, value);
    const look = { x1: 0, x2: 30, y1: 5, y2: 5, stroke: tone, "stroke-width": width, "stroke-dasharray": SVG_DASHES[dash] };
    for (const [name, value] of Object.entries(look)) line.setAttribute(name, value);
    picture.append(line);
    const item = element("span");
    item.append(picture, document.createTextNode(text));
    return item;
  }

  describe() {
    const said = this.lines().map((line) => {
      const [first, last] = [0, 1].map((t) => this.at(line.name, t)("score"));
      const all = this.kind.tasks[line.name].score.filter((value) => value !== null);
      return `${this.words(line.name)}: score ${shown(first)} at t = 0, ${shown(last)} at t = 1, from ${shown(Math.min(...all))} to ${shown(Math.max(...all))} along the way`;
    });
    this.chart.setAttribute("aria-label", `Line chart of score and loss, ${this.path.title}, ${this.kind.label}. ${said.join(". ")}. The values are in the table below.`);
  }
}
