"use strict";
// One response at a time. What a model wrote reaches the page by textContent and setAttribute only.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const at = (id) => document.getElementById(id);
  const index = JSON.parse(at("index").textContent);
  const sources = Array.from(document.querySelectorAll("script.response"));
  const collator = new Intl.Collator(undefined, { numeric: true });
  let order = []; // the responses that are listed
  let searched = null; // of each response, what a search looks through; made by the first one
  let shown = null; // the response on the page
  let row = 0; // the row that the cursor is on

  const load = (i) => JSON.parse(sources[i].textContent);
  // Control characters have pictures of their own, except line feed and tab.
  const visible = (text) => text.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, (c) => String.fromCodePoint(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)));
  const number = (value, digits) => (value === null || value === undefined ? "-" : value.toFixed(digits));

  const share = (value) => (value && Math.abs(value) < 0.001 ? value.toExponential(1) : number(value, 4));
  // Not Math.max(...values): a response may have more rows than a call may have arguments.
  const largest = (values) => values.reduce((most, value) => Math.max(most, value), 0);
  const options = index.map((_, i) => element("option", title(i), { value: i }));

  function element(name, content, attributes) {
    const made = document.createElement(name);
    made.textContent = content;
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    return made;
  }

  function draw(parent, name, attributes, content) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (content !== undefined) made.textContent = content;
    parent.append(made);
    return made;
  }

  function title(i) {
    const entry = index[i];
    const marks = [visible(entry.id), entry.score === null ? "no score" : number(entry.score, 6), `${entry.tokens} tokens`];
    if (entry.correct === true) marks.push("right");
    if (entry.correct === false) marks.push("wrong");
    if (entry.chosen && entry.chosen.length) marks.push(`chosen by ${entry.chosen.join(", ")}`);
    return marks.join(" · ");
  }

  // Every response is parsed once, not at each letter that is typed.
  function found(wanted) {
    const all = index.map((_, i) => i);
    if (!wanted) return all;
    searched ??= all.map((i) => {
      const each = load(i);
      return [each.id, each.prompt || "", (each.texts || []).join("")].join("\n").toLowerCase();
    });
    return all.filter((i) => searched[i].includes(wanted));
  }

  function list() {
    const by = { id: (a, b) => collator.compare(index[a].id, index[b].id) };
    const falling = (key) => (a, b) => (index[b][key] ?? -1) - (index[a][key] ?? -1);
    by.high = falling("score");
    by.low = (a, b) => (index[a].score ?? 2) - (index[b].score ?? 2);
    by.long = falling("tokens");
    by.cycles = falling("cycles");
    const listed = found(at("search").value.toLowerCase());
    if (by[at("order").value]) listed.sort(by[at("order").value]);
    if (listed.length !== order.length || listed.some((i, place) => i !== order[place])) {
      order = listed;
      at("choice").replaceChildren(...order.map((i) => options[i]));
    }
    at("found").textContent = `${order.length} of ${index.length}`;
    show(order.includes(shown && shown.place) ? shown.place : order[0]);
  }

  function show(i) {
    const place = order.indexOf(i);
    at("previous").disabled = place <= 0;
    at("next").disabled = place < 0 || place === order.length - 1;
    at("response").hidden = place < 0;
    if (place < 0) {
      shown = null;
      return;
    }
    at("choice").value = String(i);
    if (shown && shown.place === i) return; // still there, at the row where it was
    shown = { place: i, ...load(i) };
    row = 0;
    at("name").textContent = visible(shown.id);
    facts();
    at("prompt").hidden = shown.prompt === null;
    at("prompt").querySelector("pre").textContent = visible(shown.prompt || "");
    text();
    cycles();
    const hasRows = shown.lengths.length > 0;
    at("curve").hidden = at("readout").hidden = !hasRows;
    if (hasRows) {
      curve();
      point(0, false);
    }
  }

  function facts() {
    const known = [
      ["score", shown.score === null ? "none" : number(shown.score, 6)],
      ["tokens", shown.tokens],
      ["ended by", shown.finish || "unknown"],
    ];
    if (shown.bad !== null) known.splice(1, 0, ["bad share", `${number(1000 * shown.bad, 3)} ‰`]);
    if (shown.lengths.length) known.push(["rows", shown.lengths.length]);
    if (shown.correct === true || shown.correct === false) known.push(["graded", shown.correct ? "right" : "wrong"]);
    if (shown.answer !== null && shown.answer !== undefined) known.push(["answer", visible(shown.answer)]);
    if (shown.chosen && shown.chosen.length) known.push(["chosen by", shown.chosen.join(", ")]);
    at("facts").replaceChildren(...known.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(element("dt", name), element("dd", value));
      return pair;
    }));
  }

  // Runs of equal phases: [phase, first row, row after the last].
  function runs() {
    const found = [];
    for (let r = 0; r < shown.phases.length; r++) {
      const last = found[found.length - 1];
      if (last && last[0] === shown.phases[r]) last[2] = r + 1;
      else found.push([shown.phases[r], r, r + 1]);
    }
    return found;
  }

  function text() {
    const starts = new Map(runs().map(([phase, first]) => [first, phase]));
    const rows = (shown.texts || shown.lengths.map((_, r) => `row ${r + 1}\n`)).map((part, r) => {
      const span = element("span", visible(part), { class: { E: "row e", X: "row x" }[shown.phases[r]] || "row" });
      if (starts.has(r)) span.setAttribute("data-run", starts.get(r));
      return span;
    });
    at("text").replaceChildren(...rows);
    at("text").scrollTop = 0;
    at("estimated").hidden = shown.exact || !shown.texts;
  }

  function cycles() {
    const span = (first, stop) => (stop - first > 1 ? `${first + 1}–${stop}` : `${first + 1}`);
    const words = { effective: "effective", redundant: "redundant", gated: "kept out by the strength gate" };
    at("cycles").tBodies[0].replaceChildren(...shown.judged.map(([explore, exploit, stop, ...rest]) => {
      const verdict = rest.pop();
      const line = document.createElement("tr");
      const cells = [span(explore, exploit), span(exploit, stop), words[verdict], ...rest.map(share)];
      line.append(...cells.map((value) => element("td", value)));
      return line;
    }));
    at("cycles").hidden = !shown.judged.length;
    at("no-cycles").hidden = shown.judged.length > 0;
    at("no-cycles").textContent = shown.lengths.length ? "No cycle: no E run is followed by an X run." : "The rows of this candidate are not at hand, so its phases are not known.";
  }

  const LEFT = 56, PANELS = { neurons: [16, 92], slope: [120, 190], phase: [196, 208], entropy: [244, 290] };

  function curve() {
    const panel = at("curve"), width = Math.max(panel.clientWidth, 200), count = shown.lengths.length;
    const seen = [], slopes = shown.new.map((fresh, r) => fresh / shown.lengths[r]);
    shown.new.reduce((sum, fresh, r) => (seen[r] = sum + fresh), 0);
    const mostSeen = seen[count - 1] || 1, mostSlope = largest(slopes) || 1;
    // Row 1, where all is new, would flatten the rest: it is cut at twice the largest of the others.
    const top = Math.min(mostSlope, 2 * largest(slopes.slice(1))) || mostSlope;
    const entropies = shown.entropy.filter((value) => value !== null), hasEntropy = entropies.length > 0;
    const height = hasEntropy ? 310 : 240;
    const x = (r) => LEFT + ((width - LEFT - 8) * r) / count;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Distinct neurons and novelty slope over ${count} rows; phases ${runs().map(([phase, first, stop]) => `${phase} ${first + 1} to ${stop}`).slice(0, 40).join(", ")}`);
    const scale = ([high, low], value, most) => low - ((low - high) * Math.min(value, most)) / most;
    const axis = ([high, low], name, most) => {
      draw(svg, "line", { class: "axis", x1: LEFT, y1: low, x2: width - 8, y2: low });
      draw(svg, "text", { class: "end", x: LEFT - 4, y: high + 10 }, most);
      draw(svg, "text", { x: LEFT, y: high - 6 }, name);
    };
    axis(PANELS.neurons, "distinct neurons so far", mostSeen);
    axis(PANELS.slope, "novelty slope: new neurons per token", number(top, top < 10 ? 2 : 0));
    for (const [phase, first, stop] of runs()) {
      const points = [[x(first), scale(PANELS.neurons, first ? seen[first - 1] : 0, mostSeen)]];
      for (let r = first; r < stop; r++) points.push([x(r + 1), scale(PANELS.neurons, seen[r], mostSeen)]);
      draw(svg, "polyline", { class: phase === "E" ? "e-line" : "x-line", points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") });
      const left = x(first), across = Math.max(x(stop) - left - 0.5, 0.5), [high, low] = PANELS.phase;
      draw(svg, "rect", { class: phase === "E" ? "e-bar" : "x-bar", x: left.toFixed(1), width: across.toFixed(1), y: phase === "E" ? high : (high + low) / 2, height: phase === "E" ? low - high : (low - high) / 2 });
      if (across > 12) draw(svg, "text", { class: "middle", x: (left + across / 2).toFixed(1), y: low + 12 }, phase);
    }
    const path = { E: "", X: "" }, bottom = PANELS.slope[1], gap = x(1) - x(0) > 3 ? 0.6 : 0;
    slopes.forEach((slope, r) => {
      path[shown.phases[r]] += `M${x(r).toFixed(1)},${bottom}V${scale(PANELS.slope, slope, top).toFixed(1)}H${(x(r + 1) - gap).toFixed(1)}V${bottom}Z`;
    });
    draw(svg, "path", { class: "e", d: path.E });
    draw(svg, "path", { class: "x-bars", d: path.X });
    if (mostSlope > top) draw(svg, "text", { x: x(1) + 2, y: PANELS.slope[0] + 12 }, `◂ row 1 is cut: ${number(slopes[0], 0)}`);
    if (hasEntropy) {
      const most = largest(entropies) || 1;
      axis(PANELS.entropy, "mean entropy, nats", number(most, 2));
      let line = "", isApart = true;
      shown.entropy.forEach((value, r) => {
        if (value !== null) line += `${isApart ? "M" : "L"}${((x(r) + x(r + 1)) / 2).toFixed(1)},${scale(PANELS.entropy, value, most).toFixed(1)}`;
        isApart = value === null;
      });
      draw(svg, "path", { class: "entropy", d: line });
    }
    shown.cursor = draw(svg, "line", { class: "cursor", y1: PANELS.neurons[0], y2: height - 18, x1: 0, x2: 0 });
    shown.middle = (r) => (x(r) + x(r + 1)) / 2;
    draw(svg, "text", { x: LEFT, y: height - 4 }, "row 1");
    draw(svg, "text", { class: "end", x: width - 8, y: height - 4 }, `row ${count}`);
    panel.replaceChildren(svg);
    panel.setAttribute("aria-valuemax", count);
  }

  // Put the cursor on a row: in the curve, in the words under it, and in the text.
  function point(r, scroll) {
    row = Math.max(0, Math.min(r, shown.lengths.length - 1));
    const slope = shown.new[row] / shown.lengths[row], entropy = shown.entropy[row];
    const words = `Row ${row + 1} · ${shown.phases[row]} · ${number(slope, 2)} new neurons per token` + (entropy === null ? "" : ` · entropy ${number(entropy, 3)}`);
    at("readout").textContent = words;
    at("curve").setAttribute("aria-valuenow", row + 1);
    at("curve").setAttribute("aria-valuetext", words);
    shown.cursor.setAttribute("x1", shown.middle(row));
    shown.cursor.setAttribute("x2", shown.middle(row));
    const box = at("text"), span = box.children[row];
    for (const before of box.querySelectorAll(".here")) before.classList.remove("here");
    span.classList.add("here");
    if (scroll) box.scrollTop = span.offsetTop - box.offsetTop - box.clientHeight / 2;
  }

  function rowAt(event) {
    const box = at("curve").getBoundingClientRect();
    return Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - 8)) * shown.lengths.length);
  }

  at("curve").addEventListener("pointermove", (event) => point(rowAt(event), false));
  at("curve").addEventListener("click", (event) => point(rowAt(event), true));
  at("curve").addEventListener("keydown", (event) => {
    const to = { ArrowLeft: row - 1, ArrowDown: row - 1, ArrowRight: row + 1, ArrowUp: row + 1, PageUp: row + 10, PageDown: row - 10, Home: 0, End: shown.lengths.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    point(to, true);
  });
  at("text").addEventListener("pointerover", (event) => {
    const r = Array.prototype.indexOf.call(at("text").children, event.target);
    if (r >= 0) point(r, false);
  });
  at("search").addEventListener("input", list);
  at("order").addEventListener("change", list);
  at("choice").addEventListener("change", () => show(Number(at("choice").value)));
  at("previous").addEventListener("click", () => show(order[order.indexOf(shown.place) - 1]));
  at("next").addEventListener("click", () => show(order[order.indexOf(shown.place) + 1]));
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  let width = 0;
  new ResizeObserver(() => {
    if (!shown || !shown.lengths.length || at("curve").clientWidth === width) return;
    width = at("curve").clientWidth;
    curve();
    point(row, false);
  }).observe(at("curve"));

  document.querySelector(".browser").hidden = false;
  list();
})();
