// A table of many rows: searched, filtered, sorted, and shown a page at a time.

// Columns: {label, cell(row), key(row), number, minor, descending}. Filters: {label,
// options, chosen, test(row, option)}. `text(row)` is what the search looks in.
function makeTable({ mount, caption, hint, rows, columns, filters, text, sorted }) {
  const state = { words: [], chosen: filters.map((filter) => filter.chosen ?? ""), column: sorted, page: 0, size: 25 };
  state.descending = columns[sorted].descending ?? false;
  let texts = null;
  let found = rows;

  const search = make("input", {
    type: "search",
    placeholder: hint,
    "aria-label": `Search in ${caption.toLowerCase()}: ${hint}`,
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => change(() => (state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean))),
  });
  const selects = filters.map((filter, i) =>
    make(
      "select",
      {
        "aria-label": filter.label,
        onchange: (event) => change(() => (state.chosen[i] = event.target.value)),
      },
      make("option", { value: "" }, filter.label),
      filter.options.map((option) =>
        make("option", { value: option, selected: option === filter.chosen }, option),
      ),
    ),
  );
  const size = make(
    "select",
    {
      "aria-label": "Rows a page",
      onchange: (event) => change(() => (state.size = Number(event.target.value))),
    },
    [25, 100, 500].map((n) => make("option", { value: n }, `${n} rows`)),
  );
  const heads = columns.map((column, i) =>
    make(
      "th",
      { scope: "col", class: classes(column) },
      column.key
        ? make("button", { type: "button", onclick: () => sortBy(i) }, column.label)
        : column.label,
    ),
  );
  const body = make("tbody");
  const status = make("p", { class: "note", role: "status", "aria-live": "polite" });
  const step = (label, by) =>
    make("button", { type: "button", "aria-label": label, onclick: () => turn(state.page + by) });
  const back = fill(step("Page before", -1), {}, ["\u2039"]);
  const forward = fill(step("Next page", 1), {}, ["\u203a"]);
  const page = make("input", {
    type: "number",
    min: 1,
    "aria-label": "Page",
    onchange: () => turn(Number(page.value) - 1),
  });
  const last = make("span", {});
  const scroll = make(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, heads)), body),
  );
  mount.append(
    make("div", { class: "controls" }, search, selects, size),
    status,
    scroll,
    make("div", { class: "pager" }, back, page, last, forward),
  );
  mount.hidden = false;

  function classes(column) {
    return [column.number && "number", column.minor && "minor"].filter(Boolean).join(" ") || null;
  }

  function change(edit) {
    edit();
    state.page = 0;
    select();
  }

  function sortBy(i) {
    state.descending = state.column === i ? !state.descending : (columns[i].descending ?? false);
    state.column = i;
    state.page = 0;
    select();
  }

  function turn(to) {
    state.page = to;
    show();
    if (mount.getBoundingClientRect().top < 0) mount.scrollIntoView();
  }

  function select() {
    if (state.words.length && texts === null) texts = new Map(rows.map((row) => [row, text(row).toLowerCase()]));
    found = rows.filter(
      (row) =>
        state.words.every((word) => texts.get(row).includes(word)) &&
        filters.every((filter, i) => state.chosen[i] === "" || filter.test(row, state.chosen[i])),
    );
    const { key } = columns[state.column];
    const keys = new Map(found.map((row) => [row, key(row)]));
    const way = state.descending ? -1 : 1;
    found.sort((first, second) => {
      const a = keys.get(first);
      const b = keys.get(second);
      // What has no number stands last whichever way.
      if (a === null || b === null) return a === b ? first - second : a === null ? 1 : -1;
      return a < b ? -way : a > b ? way : first - second;
    });
    heads.forEach((head, i) => {
      if (i === state.column) head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(found.length / state.size));
    state.page = Math.min(Math.max(state.page || 0, 0), pages - 1);
    const first = state.page * state.size;
    const shown = found.slice(first, first + state.size);
    body.replaceChildren(
      ...shown.map((row) =>
        make("tr", {}, columns.map((column) => make("td", { class: classes(column) }, column.cell(row)))),
      ),
    );
    const part = found.length ? `${count(first + 1)} to ${count(first + shown.length)} of ` : "";
    const whole = found.length === rows.length ? "" : ` that match, of ${count(rows.length)}`;
    status.textContent = `${part}${count(found.length)}${whole}`;
    back.disabled = state.page === 0;
    forward.disabled = state.page === pages - 1;
    page.value = state.page + 1;
    page.max = pages;
    last.textContent = ` of ${count(pages)} `;
  }

  select();
}

// A small table that is shown whole.
function plainTable(caption, header, rows, right) {
  const classOf = (i) => (right.includes(i) ? "number" : null);
  return make(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, header.map((name, i) => make("th", { scope: "col", class: classOf(i) }, name)))),
      make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell, i) => make("td", { class: classOf(i) }, cell))))),
    ),
  );
}
