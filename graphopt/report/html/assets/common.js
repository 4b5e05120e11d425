"use strict";
const graphoptPage = (() => {
  const data = JSON.parse(document.getElementById("content").textContent);
  const byId = (id) => document.getElementById(id);

  // Everything that came from a model reaches the page through textContent, never as markup.
  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = String(text);
    if (className) made.className = className;
    return made;
  };
  const number = (value, digits = 3) =>
    value === null || value === undefined ? "" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(digits));

  const table = (columns, rows, scrolling) => {
    const made = element("table");
    const body = element("tbody");
    const head = element("tr");
    let sorted = { column: null, up: true };
    const fill = (shown) => body.replaceChildren(...shown.map((row) => {
      const line = element("tr");
      for (const column of columns) {
        const cell = element("td", column.lines ? null : column.show ? column.show(row) : row[column.key], column.number ? "number" : "");
        if (column.lines) cell.append(...column.lines(row).map((text) => element("div", text)));
        line.append(cell);
      }
      if (columns.click) line.addEventListener("click", () => columns.click(row));
      return line;
    }));
    let current = rows;
    const sortBy = (column, cell) => {
      sorted = { column, up: sorted.column === column ? !sorted.up : !column.number };
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
      update(current);
    };
    const update = (shown) => {
      current = shown;
      const key = sorted.column && sorted.column.key;
      const compare = (a, b) => {
        const [x, y] = [a[key] ?? (sorted.column.number ? -Infinity : ""), b[key] ?? (sorted.column.number ? -Infinity : "")];
        return (x < y ? -1 : x > y ? 1 : 0) * (sorted.up ? 1 : -1);
      };
      fill(key ? [...shown].sort(compare) : shown);
    };
    for (const column of columns) {
      const cell = element("th", column.title, "sortable" + (column.number ? " number" : ""));
      cell.addEventListener("click", () => sortBy(column, cell));
      head.append(cell);
    }
    const top = element("thead");
    top.append(head);
    made.append(top, body);
    update(rows);
    const frame = element("div", null, scrolling ? "scroll" : "");
    frame.append(made);
    return { frame, update };
  };

  return { data, byId, element, number, table };
})();
