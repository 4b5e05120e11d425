(() => {
  const { data, byId, element, number, table } = graphoptPage;
  const COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d", "#ff9da6", "#79706e"];
  const IDENTICAL = 200; // dB
  const READABLE = 0.5; // a smaller graph begins at its top; "fit" shows the whole
  const UNCHANGED = "#c3cad4";

  const summary = () => {
    byId("title").textContent = data.after.name;
    byId("subtitle").textContent = `${data.before ? `from ${data.before.name}, ` : ""}by ${data.made_by}; measured on ${data.samples.of > data.samples.run ? `the first ${data.samples.run} of ` : ""}${data.samples.source}${data.samples.synthetic ? " (made up: real inputs may give other figures)" : ""}`;
    const labels = { bytes: "bytes", nodes: "nodes", parameters: "parameters", macs: "multiply-accumulates", milliseconds: "milliseconds, summed over nodes", load_milliseconds: "milliseconds to load", peak_mb: "MB at the peak" };
    const rows = Object.entries(labels).map(([key, label]) => {
      const [before, after] = [data.before ? data.before[key] : null, data.after[key]];
      return { label, before: number(before, 4), after: number(after, 4), change: before && after && before !== after ? `${after > before ? "+" : ""}${((after / before - 1) * 100).toFixed(1)} %` : "" };
    });
    const figures = data.run && data.run.figures;
    if (figures) {
      const speed = figures.speed;
      if (speed) rows.push({ label: "times as fast, interleaved", before: "", after: number(speed.speedup.ratio), change: `95 %: ${number(speed.speedup.low)} to ${number(speed.speedup.high)}; A/A ${number(speed.same.ratio)}` });
      if (figures.sqnr_db !== null && figures.sqnr_db !== undefined) rows.push({ label: "signal to noise of the worst output, dB", before: "", after: number(figures.sqnr_db, 4), change: "" });
      if (figures.relative_error !== null && figures.relative_error !== undefined) rows.push({ label: "relative error", before: "", after: figures.relative_error.toExponential(1), change: "" });
      if (figures.metric) rows.push({ label: figures.metric[0], before: number(figures.metric[1], 5), after: number(figures.metric[2], 5), change: "" });
    }
    const compared = rows.some((row) => row.before || row.change);
    const columns = [
      { key: "label", title: "" },
      ...(compared ? [{ key: "before", title: "before", number: true }] : []),
      { key: "after", title: compared ? "after" : "", number: true },
      ...(compared ? [{ key: "change", title: "" }] : []),
    ];
    byId("figures").append(table(columns, rows).frame);
    for (const note of (data.run && data.run.notes) || []) byId("notes").append(element("p", note, "soft"));
  };

  const leaveOut = (id) => {
    byId(id).remove();
    const link = document.querySelector(`nav a[href="#${id}"]`);
    if (link) link.remove();
  };

  const pipeline = () => {
    if (!data.run && !data.passes.length && !data.refused.length && !data.misses.length) return leaveOut("pipeline");
    const seconds = (data.run && data.run.figures && data.run.figures.seconds) || {};
    const names = [...new Set([...Object.keys(seconds), ...data.passes.map((entry) => entry.name)])];
    const rows = names.map((name) => {
      const entry = data.passes.find((each) => each.name === name) || { rules: {}, refused: 0 };
      const counts = Object.entries(entry.rules);
      return { name, seconds: seconds[name] ?? null, kept: counts.reduce((sum, [, count]) => sum + count, 0), refused: entry.refused, rules: counts.map(([rule, count]) => `${rule} ×${count}`).join(", ") };
    });
    const columns = [
      { key: "name", title: "pass or check" }, { key: "seconds", title: "seconds", number: true, show: (row) => number(row.seconds) },
      { key: "kept", title: "rewrites kept", number: true }, { key: "refused", title: "refused", number: true }, { key: "rules", title: "rules" },
    ];
    byId("passes").append(table(columns, rows).frame);
    for (const [id, label, entries, key] of [["refused", "taken back or declined", data.refused, "rewrite"], ["misses", "near misses", data.misses, "rule"]]) {
      const box = byId(id);
      box.querySelector("summary").textContent = `${entries.length} ${label}`;
      box.append(table([{ key, title: key }, { key: "reason", title: "reason" }], entries, true).frame);
    }
  };

  const shapes = (row) => {
    const [before, after] = [[row.shape], row.shapes_after || []].map((side) => side.map((shape) => shape.join("×")).join(" · "));
    return after && after !== before ? [before, `→ ${after}`] : [before];
  };

  const layers = () => {
    const columns = [
      { key: "name", title: "layer" }, { key: "operator", title: "operator" },
      { key: "size", title: "shape", lines: shapes },
      { key: "macs", title: "MACs", number: true, show: (row) => number(row.macs) },
      { key: "bytes", title: "bytes", number: true, show: (row) => number(row.bytes) },
      ...(data.before ? [{ key: "bytes_after", title: "after", number: true, show: (row) => number(row.bytes_after) }] : []),
      { key: "milliseconds", title: "ms", number: true, show: (row) => number(row.milliseconds) },
      ...(data.before ? [{ key: "milliseconds_after", title: "after", number: true, show: (row) => number(row.milliseconds_after) }] : []),
      { key: data.before ? "kernel_after" : "kernel", title: "kernel" },
      ...(data.layers.some((row) => row.expected_error !== null) ? [{ key: "expected_error", title: "error alone", number: true, show: (row) => number(row.expected_error) }] : []),
      ...(data.before ? [{ key: "decibels", title: "dB, accumulated", number: true, show: (row) => (row.decibels >= IDENTICAL ? "equal" : number(row.decibels)) }] : []),
      ...(data.layers.some((row) => row.steps.length || row.obstacles.length) ? [{ key: "by", title: "what happened, and why not", lines: (row) => [...row.steps, ...row.obstacles] }] : []),
    ];
    columns.click = (row) => chooseHistogram(row.name);
    for (const row of data.layers) Object.assign(row, { size: row.shape.reduce((a, b) => a * b, 1), by: [...row.steps, ...row.obstacles].join("; ") });
    const made = table(columns, data.layers, true);
    byId("layer-table").append(made.frame);
    byId("layer-filter").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      made.update(data.layers.filter((row) => [row.name, row.operator, row.kernel, row.kernel_after, row.by].join(" ").toLowerCase().includes(wanted)));
    });
  };

  const bars = (id, before, after) => {
    const labels = [...new Set([...Object.keys(before || {}), ...Object.keys(after)])].slice(0, 14);
    const series = [["before", before, "#9aa7b8"], ["after", after, "#1f6feb"]].filter(([, values]) => values);
    const datasets = series.map(([label, values, colour]) => ({ label, data: labels.map((name) => values[name] || 0), backgroundColor: colour }));
    new Chart(byId(id), { type: "bar", data: { labels, datasets }, options: { indexAxis: "y", animation: false, plugins: { legend: { display: datasets.length > 1 } } } });
  };

  const shown = {};
  const histogram = (id, label, found) => {
    if (shown[id]) shown[id].destroy();
    const bins = found ? found.counts.length : 0;
    const labels = Array.from({ length: bins }, (_, index) => number(found.low + ((found.high - found.low) * (index + 0.5)) / bins, 2));
    shown[id] = new Chart(byId(id), { type: "bar", data: { labels, datasets: [{ label, data: found ? found.counts : [], backgroundColor: "#54a24b", barPercentage: 1, categoryPercentage: 1 }] }, options: { animation: false, scales: { y: { type: "logarithmic" } } } });
  };
  const chooseHistogram = (name) => {
    const found = data.histograms[name];
    if (!found) return;
    byId("histogram-layer").value = name;
    histogram("chart-weight", "weight", found.weight);
    histogram("chart-input", "input", found.input);
  };

  const charts = () => {
    bars("chart-sizes", data.sizes.before, data.sizes.after);
    bars("chart-times", data.times.before, data.times.after);
    const errors = data.errors.filter((entry) => entry.decibels !== null);
    if (!errors.length) byId("chart-errors").closest("figure").remove();
    else new Chart(byId("chart-errors"), {
      type: "line",
      data: { labels: errors.map((entry) => entry.number), datasets: [{ label: "dB", data: errors.map((entry) => entry.decibels), borderColor: "#e45756", pointRadius: 2 }] },
      options: { animation: false, plugins: { legend: { display: false }, tooltip: { callbacks: { title: (items) => `${errors[items[0].dataIndex].value} by ${errors[items[0].dataIndex].maker}` } } } },
    });
    const names = Object.keys(data.histograms);
    byId("histogram-layer").append(...names.map((name) => Object.assign(element("option", name), { value: name })));
    byId("histogram-layer").addEventListener("change", (event) => chooseHistogram(event.target.value));
    if (names.length) chooseHistogram(names[0]);
  };

  const graph = () => {
    const stories = new Map(data.graph.nodes.map((node) => [node.id, node]));
    const passes = [...new Set(data.graph.nodes.map((node) => node.made_by).filter(Boolean))];
    const colour = (node) => (node && node.made_by ? COLOURS[passes.indexOf(node.made_by) % COLOURS.length] : UNCHANGED);
    for (const name of passes) {
      const swatch = element("span", null, "swatch");
      swatch.style.background = COLOURS[passes.indexOf(name) % COLOURS.length];
      byId("legend").append(swatch, element("span", name));
    }
    const whole = () => [
      ...data.graph.nodes.map((node) => ({ data: { id: node.id, label: node.operator.split("::").pop(), colour: colour(node) }, position: { x: node.at[0], y: node.at[1] } })),
      ...data.graph.edges.map(([source, target]) => ({ data: { source, target } })),
    ];
    const count = (block) => data.graph.nodes.filter((node) => node.block === block).length;
    const folded = () => [
      ...data.graph.folded.nodes.map((node) => {
        const story = stories.get(node.id);
        return { data: { id: node.id, label: story ? story.operator.split("::").pop() : `${node.id}: ${count(node.id)} nodes`, colour: story ? colour(story) : "#ffd33d" }, position: { x: node.at[0], y: node.at[1] } };
      }),
      ...data.graph.folded.edges.map(([source, target]) => ({ data: { source, target } })),
    ];
    const drawing = cytoscape({
      container: byId("canvas"), layout: { name: "preset" }, minZoom: 0.01, maxZoom: 4, pixelRatio: 1, hideEdgesOnViewport: data.graph.nodes.length > 1500, textureOnViewport: data.graph.nodes.length > 1500,
      style: [
        { selector: "node", style: { label: "data(label)", "background-color": "data(colour)", shape: "round-rectangle", width: 150, height: 34, "text-valign": "center", "font-size": 15, color: "#1c2430", "min-zoomed-font-size": 6 } },
        { selector: "edge", style: { width: 1.5, "line-color": "#aab4c0", "target-arrow-color": "#aab4c0", "target-arrow-shape": "triangle", "curve-style": data.graph.nodes.length > 1500 ? "haystack" : "bezier" } },
        { selector: ".found", style: { "border-width": 5, "border-color": "#b42318" } },
      ],
    });
    const show = (isFolded) => {
      byId("fold").checked = isFolded;
      drawing.elements().remove();
      drawing.add(isFolded ? folded() : whole());
      drawing.fit(undefined, 30);
      if (drawing.zoom() < READABLE) {
        const { x1, x2, y1 } = drawing.elements().boundingBox();
        drawing.viewport({ zoom: READABLE, pan: { x: drawing.width() / 2 - (READABLE * (x1 + x2)) / 2, y: 20 - READABLE * y1 } });
      }
    };
    const tell = (node) => {
      const parts = [element("h3", node.id), element("p", node.operator)];
      const list = (title, entries) => {
        if (!entries.length) return;
        const items = element("ul");
        items.append(...entries.map((entry) => element("li", entry)));
        parts.push(element("strong", title), items);
      };
      if (node.execution) parts.push(element("p", `runs as ${node.execution.kernel}, ${number(node.execution.milliseconds)} ms`));
      list("attributes", Object.entries(node.attributes).map(([name, value]) => `${name} = ${value}`));
      list("reads", node.inputs);
      list("writes", node.outputs);
      list(node.steps.length ? "rewrites, first to last" : "as in the original", node.steps.map((step) => `${step.rewrite}: ${step.about}`));
      list("comes from", node.origins);
      byId("story").replaceChildren(...parts);
    };
    drawing.on("tap", "node", (event) => {
      const id = event.target.id();
      if (stories.has(id)) return tell(stories.get(id));
      show(false);
      drawing.fit(drawing.nodes().filter((each) => stories.get(each.id()).block === id), 60);
    });
    byId("fold").disabled = !data.graph.nodes.some((node) => node.block);
    byId("fold").addEventListener("change", (event) => show(event.target.checked));
    byId("fit").addEventListener("click", () => drawing.fit(undefined, 30));
    byId("node-search").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      drawing.nodes().removeClass("found");
      if (!wanted) return;
      if (byId("fold").checked) show(false);
      const matches = drawing.nodes().filter((each) => { const story = stories.get(each.id()); return `${story.id} ${story.operator}`.toLowerCase().includes(wanted); });
      matches.addClass("found");
      if (matches.length) drawing.animate({ center: { eles: matches[0] }, zoom: 0.8 }, { duration: 150 });
      if (matches.length) tell(stories.get(matches[0].id()));
    });
    show(data.graph.nodes.length > 300 && data.graph.nodes.some((node) => node.block));
    window.graphoptReport = { drawing, data };
  };

  summary();
  pipeline();
  layers();
  charts();
  graph();
})();
