// A solution token by token: figure 3 of the paper, that answers when it is touched.
// trace.py draws the same picture without a script.

const TOKEN = 22;
const LEFT = 34;
const RARE = 1000; // ten-thousandths
const pen = document.createElement("canvas").getContext("2d");
const tokenFont = '13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';

function shorten(token) {
  const letters = [...showToken(token)];
  return letters.length <= 18 ? letters.join("") : `${letters.slice(0, 17).join("")}\u2026`;
}

// Draws a response into an element, and again when the element's width changes.
function showFigure(mount, response, chosen = null) {
  const length = response.tokens.length;
  const line = fillGaps(response.values);
  const card = make("div", { class: "card-of-token", role: "status", hidden: true });
  const frame = make("div", { class: "solution" });
  let pinned = null;
  let cells = [];
  let current = 0;
  let width = 0;
  let plot = 92; // height of the line's part of a row
  mount.replaceChildren(frame, card);

  const testOf = (i) => response.tested.get(i)?.[0] ?? null;
  const changeOf = (i) =>
    response.values[i] === null || response.values[i + 1] === null ? null : response.values[i + 1] - response.values[i];
  const isExported = (i) => testOf(i) !== null && isFound(testOf(i));
  const isBoxed = (i) => testOf(i) !== null || Math.abs(changeOf(i) ?? 0) >= data.gap - 1e-9;

  function render() {
    width = Math.floor(mount.clientWidth);
    if (!width || !length) return;
    plot = width < 500 ? 60 : 92;
    const rowHeight = plot + TOKEN + 30;
    pen.font = tokenFont;
    const texts = response.tokens.map(shorten);
    const widths = texts.map((text) => Math.max(18, pen.measureText(text).width + 8));
    const rows = wrap(widths, width - LEFT - 4);
    const height = rows.length * rowHeight;
    const picture = draw("svg", {
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "group",
      "aria-label": `${length} tokens with the probability of a right answer; arrow keys go through them`,
    });
    cells = [];
    let y = 6;
    for (const [first, last] of rows) {
      const edges = [LEFT];
      for (let i = first; i < last; i++) edges.push(edges[i - first] + widths[i]);
      picture.append(...drawLine(first, last, edges, y));
      for (let i = first; i < last; i++) {
        cells.push(drawToken(i, texts[i], edges[i - first], edges[i - first + 1], y + plot + 6));
      }
      picture.append(...cells.slice(first, last), ...drawChanges(first, last, edges, y + plot + TOKEN + 19));
      y += rowHeight;
    }
    picture.addEventListener("keydown", onKey);
    picture.addEventListener("pointerleave", () => pinned === null && hide());
    frame.replaceChildren(picture);
    cells[current].setAttribute("tabindex", "0");
    if (!card.hidden) place(pinned ?? current);
  }

  function drawLine(first, last, edges, y) {
    const height = (value) => y + plot * (1 - value);
    const parts = [];
    for (const [value, label] of [[0, "0"], [0.5, ".5"], [1, "1"]]) {
      parts.push(
        draw("line", { x1: LEFT, x2: edges.at(-1), y1: height(value), y2: height(value), class: "grid" }),
        draw("text", { x: LEFT - 8, y: height(value) + 4, class: "muted small", "text-anchor": "end" }, label),
      );
    }
    for (let i = first; i <= last; i++) {
      const x = edges[i - first];
      const known = response.values[i] !== null;
      if (known && i < last && response.values[i + 1] !== null) {
        const end = edges[i - first + 1];
        const corner = (px, value) => `${px.toFixed(1)},${height(value).toFixed(1)}`;
        const points = [
          corner(x, response.highs[i]),
          corner(end, response.highs[i + 1]),
          corner(end, response.lows[i + 1]),
          corner(x, response.lows[i]),
        ];
        parts.push(draw("polygon", { points: points.join(" "), class: "band" }));
      } else if (known && (i === 0 || response.values[i - 1] === null)) {
        const [low, high] = [height(response.lows[i]), height(response.highs[i])];
        parts.push(draw("line", { x1: x, x2: x, y1: low, y2: high, class: "whisker stroke-1" }));
      }
    }
    for (let i = first; i < last; i++) {
      const sure = response.values[i] !== null && response.values[i + 1] !== null;
      const big = isBoxed(i) && (sure || isExported(i));
      const way = line[i + 1] >= line[i] ? "move-up" : "move-down";
      const ends = { x1: edges[i - first], x2: edges[i - first + 1], y1: height(line[i]), y2: height(line[i + 1]) };
      parts.push(draw("line", { ...ends, class: big ? way : sure ? "path" : "path dashed" }));
    }
    for (let i = first; i <= last; i++) {
      // A point between two gaps would not be seen as part of a line.
      if (response.values[i] !== null && (response.values[i + 1] ?? null) === null) {
        parts.push(draw("circle", { cx: edges[i - first], cy: height(line[i]), r: 2.5, class: "fill-1" }));
      }
    }
    return parts;
  }

  function drawToken(i, text, x, end, y) {
    const tint = Math.round(line[i + 1] * 10);
    const guess = response.values[i + 1] === null ? " guess" : "";
    const cell = draw(
      "g",
      { role: "button", tabindex: "-1", "aria-label": say(i), class: "cell" },
      draw("rect", { x, y, width: end - x, height: TOKEN, class: `p-${tint}${guess}` }),
      draw("text", { x: (x + end) / 2, y: y + 15, class: "mono", "text-anchor": "middle" }, text),
    );
    if (response.probs[i] <= RARE) {
      cell.append(draw("line", { x1: x + 4, x2: end - 4, y1: y + 18.5, y2: y + 18.5, class: "rare" }));
    }
    if (isBoxed(i)) {
      const kind = isExported(i) ? "box" : "box doubt";
      cell.append(draw("rect", { x: x + 1, y: y + 0.5, width: end - x - 2, height: TOKEN - 1, rx: 3, class: kind }));
    }
    cell.append(draw("rect", { x: x - 1, y: y - 2, width: end - x + 2, height: TOKEN + 4, rx: 4, class: "ring" }));
    cell.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && pinned === null && place(i));
    cell.addEventListener("focus", () => {
      move(i, false);
      place(i);
    });
    cell.addEventListener("blur", () => pinned === null && hide());
    cell.addEventListener("click", () => {
      pinned = pinned === i ? null : i;
      move(i, true);
      place(i);
    });
    return cell;
  }

  function drawChanges(first, last, edges, y) {
    const parts = [];
    let free = 0;
    for (let i = first; i < last; i++) {
      if (!isBoxed(i)) continue;
      const change = (testOf(i) === null ? null : at(hypotheses, "d", testOf(i))) ?? changeOf(i);
      if (change === null) continue;
      const middle = Math.max((edges[i - first] + edges[i - first + 1]) / 2, free + 16);
      free = middle + 17;
      const shown = signed(change).replace("0.", ".");
      const kind = `${change >= 0 ? "up" : "down"} small strong`;
      parts.push(draw("text", { x: middle, y, class: kind, "text-anchor": "middle" }, shown));
    }
    return parts;
  }

  function say(i) {
    const value = (place) => (response.values[place] === null ? "unknown" : share(response.values[place]));
    const state = testOf(i) === null ? "" : `, ${stateOf(testOf(i))}`;
    return `${showToken(response.tokens[i])}, probability ${probability(response.probs[i])}, success ${value(i)} to ${value(i + 1)}${state}`;
  }

  function move(i, focus) {
    cells[current].setAttribute("tabindex", "-1");
    current = i;
    cells[current].setAttribute("tabindex", "0");
    if (focus) cells[current].focus();
  }

  function onKey(event) {
    const boxed = (way) => {
      for (let i = current + way; i >= 0 && i < length; i += way) if (isBoxed(i)) return i;
      return current;
    };
    const to = {
      ArrowRight: current + 1,
      ArrowLeft: current - 1,
      ArrowDown: boxed(1),
      ArrowUp: boxed(-1),
      Home: 0,
      End: length - 1,
    }[event.key];
    if (event.key === "Escape") {
      pinned = null;
      hide();
    } else if (event.key === "Enter" || event.key === " ") {
      pinned = pinned === current ? null : current;
      place(current);
    } else if (to === undefined) {
      return;
    } else if (to >= 0 && to < length) {
      pinned = null;
      move(to, true);
    }
    event.preventDefault();
  }

  function hide() {
    card.hidden = true;
    frame.querySelector(".shown")?.classList.remove("shown");
  }

  // Puts the card under its token, inside the figure.
  function place(i) {
    frame.querySelector(".shown")?.classList.remove("shown");
    cells[i].classList.add("shown");
    card.replaceChildren(...describeToken(response, i, line, response.tested.get(i) ?? []));
    card.hidden = false;
    const box = cells[i].getBoundingClientRect();
    const outer = mount.getBoundingClientRect();
    const room = outer.width - card.offsetWidth;
    card.style.left = `${Math.max(0, Math.min(box.left - outer.left - 12, room))}px`;
    card.style.top = `${box.bottom - outer.top + 6}px`;
  }

  new ResizeObserver(() => Math.floor(mount.clientWidth) !== width && render()).observe(mount);
  render();
  if (chosen !== null && chosen < length && cells.length) {
    current = chosen;
    pinned = chosen;
    render();
    cells[chosen].focus({ preventScroll: true });
    place(chosen);
    cells[chosen].scrollIntoView({ block: "center" });
  }
}

// Values between known ones, on a straight line; the ends are always known or copied.
function fillGaps(values) {
  const filled = [...values];
  const places = values.flatMap((value, i) => (value === null ? [] : [i]));
  if (!places.length) return values.map(() => 0.5);
  for (let i = 0; i < values.length; i++) {
    if (values[i] !== null) continue;
    const next = places.find((place) => place > i) ?? places.at(-1);
    const before = places.findLast((place) => place < i) ?? places[0];
    const way = next === before ? 0 : (i - before) / (next - before);
    filled[i] = values[before] + way * (values[next] - values[before]);
  }
  return filled;
}

// Rows that fit the room.
function wrap(widths, room) {
  const rows = [];
  let first = 0;
  let used = 0;
  widths.forEach((width, i) => {
    if (used && used + width > room) {
      rows.push([first, i]);
      first = i;
      used = 0;
    }
    used += width;
  });
  return [...rows, [first, widths.length]];
}

function describeToken(response, i, line, [test = null, ...more]) {
  const span = (place) =>
    response.values[place] === null
      ? `about ${share(line[place])} (between two estimates)`
      : `${share(response.values[place])} [${share(response.lows[place])}, ${share(response.highs[place])}]`;
  const drawn = (place) => {
    const found = response.counts.get(place);
    return found ? ` (${found[0]}/${found[1]})` : "";
  };
  const curve = data.mode === "comb" ? ", all rollouts" : "";
  const rows = [
    ["probability", probability(response.probs[i])],
    [`p(success) before${curve}`, span(i) + drawn(i)],
    ["and after", span(i + 1) + drawn(i + 1)],
  ];
  const left = response.left.get(i);
  if (left) rows.push(["rollouts that left here", counts(left)]);
  const parts = [
    make(
      "p",
      { class: "card-head" },
      tokenElement(response.tokens[i]),
      ` ${i + 1} of ${response.tokens.length}`,
      test === null ? null : make("span", { class: "badge" }, stateOf(test)),
    ),
  ];
  if (test !== null) rows.push(...describeTest(test));
  for (const row of more) {
    const way = hypotheses.g[row] > 0 ? "that it raises p" : "that it lowers p";
    rows.push([`tested as well: ${way}`, stateOf(row)]);
  }
  parts.push(make("dl", {}, rows.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
  const others = response.others.get(i) ?? [];
  if (others.length) {
    const shown = others.slice(0, 6);
    parts.push(
      make("p", { class: "note" }, "Other tokens drawn here, right/all of all rollouts through them:"),
      make(
        "ul",
        { class: "others" },
        shown.map((other) =>
          make("li", {}, tokenElement(other.token), ` ${other.right}/${other.all}`, bar(other.right / other.all)),
        ),
        others.length > shown.length ? make("li", { class: "note" }, `${others.length - shown.length} more`) : null,
      ),
    );
  }
  return parts;
}

const bar = (value) =>
  draw(
    "svg",
    { viewBox: "0 0 40 8", class: "bar", "aria-hidden": "true" },
    draw("rect", { width: 40, height: 8, class: "bar-all" }),
    draw("rect", { width: 40 * value, height: 8, class: "kept" }),
  );

// What was tested of a token, as pairs of a name and a value.
function describeTest(row) {
  const value = (name) => at(hypotheses, name, row);
  const rows = [];
  if (value("d") !== null) {
    const span = value("l") === null ? "" : ` [${signed(value("l"))}, ${signed(value("u"))}]`;
    const drawn = data.mode === "naive" ? "the rollouts of the choice" : "fresh rollouts";
    rows.push([`change, ${drawn}`, signed(value("d")) + span]);
  }
  if (value("vb") !== null) {
    rows.push(["it is V after minus V before", `${share(value("va"))} ${MINUS} ${share(value("vb"))}`]);
  }
  // The bound is on the change in the direction that was tested.
  if (value("b") !== null) {
    rows.push([`the change is at ${value("g") > 0 ? "least" : "most"}`, signed(value("b") * value("g"))]);
  }
  if (value("e") !== null) rows.push(["evidence E", evidence(value("e"))]);
  if (value("z") !== null) rows.push(["P(pivotal | rollouts)", share(value("z"))]);
  for (const [counted, named] of [["a", "an"], ["c", "bn"]]) {
    if (value(counted) !== null) rows.push([`${rolloutsOf}${words[value(named)]}`, counts(value(counted))]);
  }
  if (value("y") !== null) {
    rows.push(["P(stay on the response to its end)", `${share(value("y"))}, the verdict is ${value("v") ? "right" : "wrong"}`]);
  }
  const why = words[value("w")];
  if (why) rows.push(["because", why]);
  return rows;
}
