// What search_payload.py wrote, read back; and the few ways to make elements.

const MINUS = "\u2212";
const data = JSON.parse(document.getElementById("search-index").textContent);
const words = data.s;
const hypotheses = data.h;
const questions = data.q;
const numberOf = (columns) => Object.values(columns)[0]?.length ?? 0;
const at = (columns, name, row) => columns[name]?.[row] ?? null;
const rowOfQuestion = new Map((questions.n ?? []).map((number, row) => [number, row]));

// Text goes in as text, never as markup.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  const kept = children.flat(3).filter((child) => child !== null && child !== undefined);
  element.append(...kept.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

const make = (name, attributes, ...children) =>
  fill(document.createElement(name), attributes, children);

const draw = (name, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

const count = (number) => number.toLocaleString("en-US");
const share = (value, digits = 2) => value.toFixed(digits);
const signed = (value, digits = 2) =>
  (value < 0 ? MINUS : "+") + Math.abs(value).toFixed(digits);
// [right, all], and a third one where the first is the verdict itself.
function counts(pair) {
  if (!pair || !pair[1]) return "none";
  return pair[2] ? `${pair[0]} (verdict)` : `${share(pair[0] / pair[1])} (${pair[0]}/${pair[1]})`;
}
const showToken = (token) => token.replaceAll("\n", "\u21b5").replaceAll(" ", "\u2423") || "\u2205";
const tokenElement = (token) => make("code", { class: "token" }, showToken(token));
// How the tokens that a search found are called: not all modes confirm them.
const FOUND = { comb: "exported", paper: "confirmed", naive: "claimed" }[data.mode] ?? "exported";
const isFound = (row) => words[hypotheses.s[row]] === "exported";
const stateOf = (row) => (isFound(row) ? FOUND : words[hypotheses.s[row]]);
const rolloutsOf = { comb: "fresh rollouts that ", naive: "rollouts " }[data.mode] ?? "fresh rollouts ";
const probability = (tenThousandths) =>
  tenThousandths === 0 ? "< .0001" : share(tenThousandths / 1e4, tenThousandths < 100 ? 4 : 2);

// E as a person reads it: a plain number, or a power of ten.
function evidence(log10) {
  if (log10 === null) return "";
  if (log10 <= -900) return "0";
  if (log10 > -1 && log10 < 4) return count(Number((10 ** log10).toPrecision(2)));
  return `1e${log10 < 0 ? MINUS : ""}${Math.abs(Math.round(log10))}`;
}

const chunks = new Map();

// Unpacks the questions that share a chunk; a chunk is kept once it was.
function readChunk(number) {
  if (!chunks.has(number)) chunks.set(number, unpack(number));
  return chunks.get(number);
}

async function unpack(number) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error(
      "This browser cannot unpack the solutions (it has no DecompressionStream). " +
        "Chrome 80, Firefox 113, Safari 16.4 or newer can.",
    );
  }
  const packed = atob(document.getElementById(`search-${number}`).textContent);
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const { s, q } = JSON.parse(await new Response(stream).text());
  return new Map(q.map((question) => [question.n, { ...question, words: s }]));
}

// Returns a question with its whole text and its searched responses, if any.
async function readQuestion(number) {
  return (await readChunk(at(questions, "b", rowOfQuestion.get(number)))).get(number);
}

// A response with plain numbers: p(success) from 0 to 1, null where it is not known.
function openResponse(packed, texts) {
  const known = (values) => values.map((value) => (value < 0 ? null : value / 1000));
  const table = (name) => new Map((packed[name] ?? []).map(([place, ...rest]) => [place, rest]));
  const others = new Map(
    (packed.x ?? []).map(([place, drawn]) => [
      place,
      drawn.map(([token, right, all]) => ({ token: texts[token], right, all })),
    ]),
  );
  return {
    index: packed.i,
    correct: packed.ok === 1,
    tokens: (packed.t ?? []).map((number) => texts[number]),
    probs: packed.p ?? [],
    values: known(packed.m),
    lows: known(packed.l),
    highs: known(packed.u),
    counts: table("c"),
    left: table("o"),
    others,
    tested: table("h"), // rows of hypotheses; the first one is that with most to say
  };
}

const questionLink = (number, response, position) =>
  `#q=${number}` +
  (response === undefined ? "" : `&r=${response}`) +
  (position === undefined ? "" : `&t=${position}`);
