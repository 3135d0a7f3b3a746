// The tables of the page, and the page of a question that an address names.

const header = document.querySelector("header");
const main = document.querySelector("main");
const pageTitle = document.title;
const isNarrow = () => matchMedia("(max-width: 40rem)").matches;
const cut = (text, length) => (text.length <= length ? text : `${text.slice(0, length - 1)}\u2026`);
const wordOf = (columns, name, row) => words[columns[name][row]];
const hasCategories = (questions.c ?? []).some((number) => words[number] !== "");
const ofQuestion = (columns, number) =>
  [...Array(numberOf(columns)).keys()].filter((row) => columns.q[row] === number);

// The end of a text in one line, its blanks as they are.
function ending(text, length) {
  const letters = [...text.replaceAll("\n", "\u21b5")];
  return letters.length <= length ? letters.join("") : `\u2026${letters.slice(1 - length).join("")}`;
}

function options(columns, name) {
  const numbers = [...new Set(columns[name] ?? [])];
  return numbers.map((number) => words[number]).filter((word) => word !== "").sort();
}

function makePivotTable() {
  const question = (row) => rowOfQuestion.get(hypotheses.q[row]);
  const value = (name) => (row) => at(hypotheses, name, row);
  const tested = "e" in hypotheses;
  const place = (row) => questionLink(hypotheses.q[row], hypotheses.r[row], hypotheses.i[row]);
  const changed = (row) => {
    const d = value("d")(row);
    if (d === null) return "unknown";
    const span =
      value("l")(row) !== null
        ? ` [${signed(value("l")(row))}, ${signed(value("u")(row))}]`
        : value("b")(row) !== null
          ? ` [${signed(value("b")(row) * value("g")(row))}]`
          : "";
    return make("span", { class: d > 0 ? "whole up" : "whole down" }, signed(d) + span);
  };
  const columns = [
    {
      label: "so far, then the token",
      key: (row) => words[hypotheses.t[row]],
      cell: (row) =>
        make(
          "a",
          { href: place(row), class: "context" },
          make("code", {}, ending(hypotheses.x[row], isNarrow() ? 9 : 22)),
          tokenElement(words[hypotheses.t[row]]),
        ),
    },
    {
      label: tested ? "change [from]" : "change [95%]",
      key: (row) => (value("d")(row) === null ? null : Math.abs(value("d")(row))),
      cell: changed,
      number: true,
      descending: true,
    },
    { label: "prob", key: value("p"), cell: (row) => probability(hypotheses.p[row]), number: true },
  ];
  if (tested) {
    columns.push(
      { label: "E", key: value("e"), cell: (row) => evidence(value("e")(row)), number: true, descending: true },
      { label: "state", key: (row) => wordOf(hypotheses, "s", row), cell: (row) => wordOf(hypotheses, "s", row) },
    );
  }
  for (const [name, label] of [["vb", "V before"], ["va", "V after"]]) {
    if (!(name in hypotheses)) continue;
    const cell = (row) => (value(name)(row) === null ? "unknown" : share(value(name)(row)));
    columns.push({ label, key: value(name), cell, number: true, minor: true });
  }
  for (const [counted, named] of [["a", "an"], ["c", "bn"]]) {
    if (!(counted in hypotheses)) continue;
    columns.push({
      label: words[hypotheses[named].find((number) => words[number] !== "")] ?? "",
      key: (row) => {
        const found = value(counted)(row);
        return found?.[1] ? found[0] / found[1] : null;
      },
      cell: (row) => counts(value(counted)(row)),
      number: true,
      minor: true,
    });
  }
  if (!tested) {
    columns.push({
      label: "instead",
      cell: (row) => {
        const other = value("o")(row);
        return other && make("span", { class: "whole" }, tokenElement(words[other[0]]), ` ${other[1]}/${other[2]}`);
      },
      minor: true,
    });
  }
  columns.push({
    label: "question",
    key: value("q"),
    cell: (row) => make("a", { href: questionLink(hypotheses.q[row]) }, cut(questions.id[question(row)], 20)),
  });
  const filters = [
    { label: "up and down", options: ["raises p", "lowers p"], test: (row, chosen) => hypotheses.g[row] > 0 === (chosen === "raises p") },
  ];
  if (tested) filters.unshift({ ...wordFilter("every state", hypotheses, "s"), chosen: "exported" });
  if (hasCategories) {
    filters.push({
      label: "every category",
      options: options(questions, "c"),
      test: (row, chosen) => wordOf(questions, "c", question(row)) === chosen,
    });
  }
  makeTable({
    mount: document.getElementById("pivot-table"),
    caption: tested ? "All tokens that were tested" : "All pivotal tokens",
    hint: "token, context, question",
    rows: [...Array(numberOf(hypotheses)).keys()],
    columns,
    filters,
    text: (row) =>
      [words[hypotheses.t[row]], hypotheses.x[row], questions.id[question(row)], questions.p[question(row)]].join(" "),
    sorted: 1,
  });
}

const wordFilter = (label, columns, name) => ({
  label,
  options: options(columns, name),
  test: (row, chosen) => wordOf(columns, name, row) === chosen,
});

function makeQuestionTable() {
  const value = (name) => (row) => questions[name][row];
  const word = (name) => (row) => wordOf(questions, name, row);
  const columns = [
    {
      label: "question",
      key: value("n"),
      cell: (row) => make("a", { href: questionLink(questions.n[row]), class: "context" }, cut(questions.p[row], 90) || "(empty)"),
    },
    { label: "id", key: value("id"), cell: (row) => cut(questions.id[row], 28), minor: true },
    {
      label: "right",
      key: (row) => (questions.r[row] ? questions.k[row] / questions.r[row] : null),
      cell: (row) => counts([questions.k[row], questions.r[row]]),
      number: true,
    },
    { label: "pivots", key: value("v"), cell: value("v"), number: true, descending: true },
    { label: "state", key: word("s"), cell: (row) => word("s")(row) + (word("w")(row) ? `: ${word("w")(row)}` : "") },
  ];
  if (hasCategories) columns.splice(2, 0, { label: "category", key: word("c"), cell: word("c") });
  const filters = [wordFilter("every state", questions, "s")];
  if (hasCategories) filters.push(wordFilter("every category", questions, "c"));
  makeTable({
    mount: document.getElementById("question-table"),
    caption: "All questions",
    hint: "id, beginning of the question, reason",
    rows: [...Array(numberOf(questions)).keys()],
    columns,
    filters,
    text: (row) => [questions.id[row], questions.p[row], word("c")(row), word("w")(row)].join(" "),
    sorted: 0,
  });
}

const view = make("article", { id: "question", tabindex: "-1", hidden: true });
main.after(view);
let place = 0; // how far the summary was scrolled when a question was opened

async function showQuestion(number, response, position) {
  const row = rowOfQuestion.get(number);
  if (main.hidden === false) place = window.scrollY;
  main.hidden = header.hidden = true;
  view.hidden = false;
  if (row === undefined) {
    view.replaceChildren(backLink(), make("h1", {}, `No question ${number}`));
    return;
  }
  document.title = `Question ${number} \u00b7 ${pageTitle}`;
  view.replaceChildren(navigation(row), make("h1", {}, `Question ${number}`));
  window.scrollTo(0, 0);
  try {
    const found = await readQuestion(number);
    if (wanted()?.number !== number) return; // another one was opened meanwhile
    view.append(...describeQuestion(row, found));
    for (const packed of found.r) {
      const opened = openResponse(packed, found.words);
      const figure = make("figure", { class: "live" });
      view.insertBefore(make("h3", {}, titleOf(opened)), view.querySelector(".after-solutions"));
      view.insertBefore(figure, view.querySelector(".after-solutions"));
      showFigure(figure, opened, opened.index === response ? position : null);
    }
  } catch (error) {
    view.append(make("p", { role: "alert" }, error.message));
  }
  if (!view.contains(document.activeElement)) view.focus({ preventScroll: true });
}

const backLink = () => make("a", { href: "#questions" }, "\u2190 all questions");

function navigation(row) {
  const link = (to, label) => (to >= 0 && to < numberOf(questions) ? make("a", { href: questionLink(questions.n[to]) }, label) : null);
  return make("nav", { "aria-label": "Questions", class: "steps" }, backLink(), link(row - 1, "before"), link(row + 1, "next"));
}

function titleOf(response) {
  const pivots = [...response.tested.values()].filter(([row]) => isFound(row)).length;
  const found = `${pivots} ${pivots === 1 ? "pivot" : "pivots"}`;
  return `Response ${response.index}: ${response.correct ? "right" : "wrong"}, ${response.tokens.length} tokens, ${found}`;
}

function describeQuestion(row, found) {
  const [state, why, category] = ["s", "w", "c"].map((name) => wordOf(questions, name, row));
  const cutShort = at(questions, "u", row);
  const facts = {
    id: questions.id[row],
    "right rollouts": counts([questions.k[row], questions.r[row]]),
    state: state + (why ? `: ${why}` : ""),
  };
  if (category) facts.category = category;
  if (cutShort) facts["cut at the horizon"] = `${cutShort} of ${questions.r[row]}`;
  if (found.a) facts["right answer"] = found.a;
  const parts = [
    make("pre", { class: "prompt", tabindex: "0" }, found.p || "(empty)"),
    make("dl", { class: "figures" }, Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
  ];
  if (found.r.length) parts.push(legend());
  else parts.push(make("p", { class: "note" }, "No response of this question was searched."));
  return [...parts, make("div", { class: "after-solutions" }, testTable(questions.n[row]), pairTable(questions.n[row]))];
}

function legend() {
  const signs = document.querySelector("#signs .legend").cloneNode(true);
  signs.append(make("li", {}, "Touch a token, or go through them with the arrow keys (up and down: boxed ones)."));
  return signs;
}

function testTable(number) {
  const rows = ofQuestion(hypotheses, number);
  if (!rows.length) return null;
  const cells = rows.map((row) => [
    make("a", { href: questionLink(number, hypotheses.r[row], hypotheses.i[row]) }, tokenElement(words[hypotheses.t[row]])),
    hypotheses.r[row],
    hypotheses.i[row] + 1,
    probability(hypotheses.p[row]),
    at(hypotheses, "d", row) === null ? "unknown" : signed(at(hypotheses, "d", row)),
    describeTest(row).slice(1).map(([name, value]) => make("span", { class: "whole fact" }, `${name} ${value}`)),
    stateOf(row),
  ]);
  const header = ["token", "response", "token no.", "prob", "change", "counts and bounds", "state"];
  return plainTable("Tokens of this question that were tested or found", header, cells, [1, 2, 3, 4]);
}

function pairTable(number) {
  const rows = ofQuestion(data.pair, number);
  if (!rows.length) return null;
  const side = (row, token, right, all) => [
    tokenElement(words[data.pair[token][row]]),
    counts([data.pair[right][row], data.pair[all][row]]),
  ];
  const cells = rows.map((row) => [
    data.pair.r[row],
    data.pair.i[row] + 1,
    ...side(row, "a", "ak", "an"),
    ...side(row, "b", "bk", "bn"),
  ]);
  const header = ["response", "token no.", "accepted", "right after it", "rejected", "right after it"];
  return plainTable("Preference pairs of this question", header, cells, [0, 1, 3, 5]);
}

// A picture of the summary gives way to one that answers.
async function enliven(picture) {
  const number = Number(picture.dataset.question);
  try {
    const found = await readQuestion(number);
    const packed = found.r.find((each) => each.i === Number(picture.dataset.response));
    const figure = make("div", { class: "live" });
    picture.replaceWith(figure);
    figure.nextElementSibling.append(" ", make("a", { href: questionLink(number) }, "All of this question"));
    showFigure(figure, openResponse(packed, found.words));
  } catch {
    // The picture stays.
  }
}

function wanted() {
  const found = new URLSearchParams(location.hash.slice(1));
  if (!found.has("q")) return null;
  const number = (name) => (found.has(name) ? Number(found.get(name)) : null);
  return { number: number("q"), response: number("r"), position: number("t") };
}

function follow() {
  const asked = wanted();
  if (asked) {
    showQuestion(asked.number, asked.response, asked.position);
    return;
  }
  if (!main.hidden) return;
  view.hidden = true;
  main.hidden = header.hidden = false;
  document.title = pageTitle;
  // Back to where the reader was, unless the address names a section.
  const section = location.hash && document.querySelector(`main ${CSS.escape ? `#${CSS.escape(location.hash.slice(1))}` : location.hash}`);
  if (section) section.scrollIntoView();
  else window.scrollTo(0, place);
}

if (numberOf(hypotheses)) {
  makePivotTable();
  document.querySelector('[data-static="pivots"]').hidden = true;
}
if (numberOf(questions)) makeQuestionTable();
document.querySelectorAll("[data-question]").forEach(enliven);
window.addEventListener("hashchange", follow);
follow();
