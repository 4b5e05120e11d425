(() => {
  const { data, byId, element, number, table } = graphoptPage;
  const AROUND = 2;
  const MOST = 400;

  const nodes = (side) => side.map(([operator, name]) => `${operator} ${name}`);
  const told = (change) => [change.what, change.detail, change.relative === null ? "" : `${number(change.relative * 100)} % of its norm`].filter(Boolean).join(": ");
  const error = (value) => {
    if (!value) return "";
    if (value.factor !== null) return `× ${number(value.factor, 4)}`;
    return value.problem || (value.decibels === null ? "differs" : value.decibels >= 200 ? (value.by_channel ? "channels scaled" : "equal") : `${number(value.decibels)} dB${value.by_channel ? ", channels scaled" : ""}`);
  };

  const summary = () => {
    byId("title").textContent = `${data.a.name} and ${data.b.name}`;
    byId("subtitle").textContent = `${data.a.nodes} nodes and ${data.b.nodes}, ${data.aligned} correspond; by ${data.made_by}`;
    const counts = Object.entries(data.counts).map(([kind, count]) => ({ kind, count }));
    byId("counts").append(counts.length ? table([{ key: "kind", title: "difference" }, { key: "count", title: "times", number: true }], counts).frame : element("p", "Nothing differs but names and order, if those."));
    if (data.compared !== null) {
      byId("values").textContent = data.parting ? `${data.parting} of ${data.compared} values that correspond differ by more than rounding.` : `All ${data.compared} values that correspond agree up to rounding, or a factor.`;
      byId("values").className = data.parting ? "bad" : "good";
    }
    for (const change of data.signature) byId("signature").append(element("p", `signature: ${told(change)}`, "soft"));
  };

  const changes = () => {
    const rows = data.rows.flatMap((row, place) => row.changes.map((change) => ({ place, kind: change.kind, a: nodes(row.a).join(", "), b: nodes(row.b).join(", "), what: told(change), relative: change.relative })));
    const columns = [
      { key: "place", title: "row", number: true }, { key: "kind", title: "change" }, { key: "a", title: "in the first" }, { key: "b", title: "in the second" },
      { key: "what", title: "what" }, { key: "relative", title: "of its norm", number: true, show: (row) => (row.relative === null ? "" : `${number(row.relative * 100)} %`) },
    ];
    columns.click = (row) => show(row.place);
    const made = table(columns, rows.slice(0, MOST), true);
    byId("change-table").append(made.frame);
    byId("change-filter").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      made.update(rows.filter((row) => [row.kind, row.a, row.b, row.what].join(" ").toLowerCase().includes(wanted)).slice(0, MOST));
    });
  };

  const cell = (side, className) => {
    const made = element("div", null, className);
    for (const [operator, name] of side) {
      const line = element("div");
      line.append(element("b", operator), element("span", ` ${name}`));
      made.append(line);
    }
    return made;
  };
  const line = (row, place) => {
    const made = element("div", null, `pair ${row.kind}${row.value && row.value.parts ? " parts" : ""}${place === data.first ? " first" : ""}`);
    made.id = `row-${place}`;
    const notes = element("div", null, "what");
    for (const change of row.changes) notes.append(element("div", [change.kind === row.kind ? "" : change.kind, told(change)].filter(Boolean).join(" ")));
    made.append(cell(row.a, "side"), cell(row.b, "side"), notes, element("div", error(row.value), "error"));
    return made;
  };

  // Stretches of equal rows become one line that opens; what stands near a change stays.
  const isShown = (wanted) => {
    const keep = new Set();
    data.rows.forEach((row, place) => {
      const isHit = wanted ? [...nodes(row.a), ...nodes(row.b)].join(" ").toLowerCase().includes(wanted) : row.kind !== "same" || place === data.first;
      if (isHit) for (let near = place - AROUND; near <= place + AROUND; near += 1) keep.add(near);
    });
    return (place) => keep.has(place);
  };
  const fold = (start, stop) => {
    const made = element("button", `${stop - start} nodes`, "folded");
    made.addEventListener("click", () => made.replaceWith(...data.rows.slice(start, stop).map((row, index) => line(row, start + index))));
    return made;
  };
  const draw = () => {
    const wanted = byId("node-search").value.toLowerCase();
    const shown = wanted || byId("only").checked ? isShown(wanted) : () => true;
    const parts = [];
    for (let place = 0; place < data.rows.length;) {
      let stop = place;
      while (stop < data.rows.length && !shown(stop)) stop += 1;
      if (stop > place) parts.push(fold(place, stop));
      else parts.push(line(data.rows[stop], stop++));
      place = stop;
    }
    byId("pairs").replaceChildren(...parts);
  };
  const show = (place) => {
    if (!byId(`row-${place}`)) {
      byId("node-search").value = "";
      byId("only").checked = false;
      draw();
    }
    byId(`row-${place}`).scrollIntoView({ block: "center" });
  };

  summary();
  changes();
  draw();
  byId("node-search").addEventListener("input", draw);
  byId("only").addEventListener("change", draw);
  byId("first").disabled = data.first === null;
  byId("first").addEventListener("click", () => show(data.first));
})();
