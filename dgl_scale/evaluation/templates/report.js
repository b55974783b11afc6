"use strict";
// Draws the queries from the JSON in the page, and the choice of theme. Nothing is fetched; text enters the page as text only.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("gallery-data").textContent);
  const LENGTHS = ["short", "medium", "long"];
  const ABOUT = ["time", "place"];
  const TOP = 5;
  const PAGE = 20;

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function numbered(rank) {
    return rank.toLocaleString("en", { maximumFractionDigits: 1 });
  }

  // What one query is to the filters: its text, its categories and the ranks that both models give the right answer.
  function queryAt(state, number) {
    const set = data.sets[state.set];
    const part = set[state.direction];
    const [caption, clip, categories] = part.queries[number];
    const other = state.against === null ? null : part.answers[state.against][number];
    const answer = part.answers[state.model][number];
    return { number, caption: set.captions[caption], clip, key: set.clips[clip][0], categories, answer, rank: answer[0], other: other && other[0] };
  }

  function isWanted(query, state) {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (query.caption + " " + query.key).toLowerCase();
    const outcomes = {
      first: () => query.rank <= 1,
      top: () => query.rank > 1 && query.rank <= TOP,
      missed: () => query.rank > TOP,
      won: () => query.other !== null && query.rank < query.other,
      lost: () => query.other !== null && query.rank > query.other,
      same: () => query.other !== null && query.rank === query.other,
    };
    if (state.outcome && !outcomes[state.outcome]()) return false;
    if (state.length && !query.categories.includes(state.length)) return false;
    if (state.words === "neither" && ABOUT.some((name) => query.categories.includes(name))) return false;
    if (ABOUT.includes(state.words) && !query.categories.includes(state.words)) return false;
    return words.every((word) => text.includes(word));
  }

  function chosenQueries(state) {
    const part = data.sets[state.set][state.direction];
    const wanted = part.queries.map((_, number) => queryAt(state, number)).filter((query) => isWanted(query, state));
    const gain = (query) => (query.other === null ? 0 : query.other - query.rank);
    const orders = {
      worst: (one, two) => two.rank - one.rank,
      best: (one, two) => one.rank - two.rank,
      gain: (one, two) => gain(two) - gain(one),
      loss: (one, two) => gain(one) - gain(two),
    };
    return state.sort ? wanted.sort(orders[state.sort]) : wanted;
  }

  function drawStrip(set, clip) {
    const [key, caption, strip, width, height] = set.clips[clip];
    // Where there is no picture at all, the note above the cards has said so.
    if (strip === null) return set.clips.some((other) => other[2] !== null) ? element("p", { class: "no-clip" }, "no picture") : "";
    return element("img", { src: "data:image/webp;base64," + strip, alt: "Frames of " + key + ": " + caption, width, height });
  }

  // A candidate of either direction; without a place it is the right one, further down than the top five.
  function drawCandidate(state, set, place, candidate, score, isRight) {
    const item = element("li", { class: isRight ? "candidate right" : "candidate" });
    const head = element("div", { class: "line-up" }, element("span", { class: "place" }, place));
    const toVideo = state.direction === "text_to_video";
    if (toVideo) head.append(element("code", {}, set.clips[candidate][0]));
    if (isRight) head.append(element("span", { class: "tick" }, toVideo ? "✓ right clip" : "✓ right caption"));
    if (score !== null) head.append(element("span", { class: "score" }, "score " + score.toFixed(2)));
    item.append(head);
    if (toVideo) item.append(drawStrip(set, candidate));
    item.append(element("p", { class: "clip-caption" }, toVideo ? set.clips[candidate][1] : set.captions[candidate]));
    return item;
  }

  function drawTop(state, set, query, model) {
    const [rank, rightScore, found] = set[state.direction].answers[model][query.number];
    const list = element("ol", { class: "candidates" });
    found.forEach(([candidate, score, isRight], place) => {
      list.append(drawCandidate(state, set, String(place + 1), candidate, score, isRight === 1));
    });
    if (!found.some(([, , isRight]) => isRight === 1)) {
      const [caption, clip] = set[state.direction].queries[query.number];
      const right = state.direction === "text_to_video" ? clip : caption;
      list.append(drawCandidate(state, set, "rank " + numbered(rank), right, rightScore, true));
    }
    return list;
  }

  function drawRanks(state, set, query) {
    const list = element("ul", { class: "ranks", "aria-label": "Rank of the right answer" });
    set.evaluations.forEach((name, model) => {
      const rank = set[state.direction].answers[model][query.number][0];
      const found = rank <= 1 ? "found" : "missed";
      const text = rank <= 1 ? "✓ first" : "✗ rank " + numbered(rank);
      const item = element("li", model === state.model ? { class: "current" } : {}, name + " ", element("strong", { class: found }, text));
      list.append(item);
    });
    return list;
  }

  function drawCard(state, query) {
    const set = data.sets[state.set];
    const id = "query-" + query.number;
    const card = element("article", { "aria-labelledby": id });
    const isText = state.direction === "text_to_video";
    card.append(element("h3", { id }, isText ? "“" + query.caption + "”" : query.key));
    if (!isText) card.append(drawStrip(set, query.clip), element("p", { class: "clip-caption" }, "It shows: " + query.caption));
    card.append(drawRanks(state, set, query), drawTop(state, set, query, state.model));
    if (state.against !== null) {
      const other = element("details", {}, element("summary", {}, "Top five of " + set.evaluations[state.against]));
      // Drawn when it is first opened: most never are.
      other.addEventListener("toggle", () => {
        if (other.open && other.children.length === 1) other.append(drawTop(state, set, query, state.against));
      });
      card.append(other);
    }
    return card;
  }

  function countText(state, queries) {
    const set = data.sets[state.set];
    const total = set[state.direction].queries.length;
    const share = (hits) => ((100 * hits) / queries.length).toFixed(1) + "%";
    let text = queries.length.toLocaleString("en") + " of " + total.toLocaleString("en") + " queries";
    if (queries.length === 0) return text + ". Clear a filter to see more.";
    text += ". Right one first: " + set.evaluations[state.model] + " " + share(queries.filter((query) => query.rank <= 1).length);
    if (state.against === null) return text + ".";
    text += ", " + set.evaluations[state.against] + " " + share(queries.filter((query) => query.other <= 1).length);
    const won = queries.filter((query) => query.rank < query.other).length;
    const lost = queries.filter((query) => query.rank > query.other).length;
    return text + ". Won " + won.toLocaleString("en") + ", lost " + lost.toLocaleString("en") + ".";
  }

  const CONTROLS = ["set", "direction", "model", "against", "outcome", "length", "words", "sort", "search"];
  let queries = [];
  let drawn = 0;

  function readState() {
    const value = Object.fromEntries(CONTROLS.map((id) => [id, byId(id).value]));
    return { ...value, set: Number(value.set), model: Number(value.model), against: value.against === "" ? null : Number(value.against) };
  }

  function drawMore() {
    const state = readState();
    const cards = queries.slice(drawn, drawn + PAGE).map((query) => drawCard(state, query));
    byId("cards").append(...cards);
    drawn += cards.length;
    const left = queries.length - drawn;
    byId("more").hidden = left === 0;
    byId("more").textContent = "Show " + Math.min(left, PAGE) + " more of " + left.toLocaleString("en");
    return cards[0];
  }

  function draw() {
    const state = readState();
    for (const option of byId("outcome").options) option.disabled = state.against === null && ["won", "lost", "same"].includes(option.value);
    for (const option of byId("sort").options) option.disabled = state.against === null && ["gain", "loss"].includes(option.value);
    queries = chosenQueries(state);
    drawn = 0;
    byId("cards").replaceChildren();
    byId("count").textContent = countText(state, queries);
    drawMore();
  }

  function fill(id, options, value) {
    byId(id).replaceChildren(...options.map(([own, text]) => element("option", { value: own }, text)));
    byId(id).value = value;
  }

  // The models of the chosen set alone: figures of different queries are never set against each other.
  function chooseSet(number) {
    const set = data.sets[number];
    const models = set.evaluations.map((name, model) => [String(model), name]);
    fill("model", models, String(set.shown));
    fill("against", [["", "nothing"], ...models], set.baseline === null || set.baseline === set.shown ? "" : String(set.baseline));
    byId("gallery-notes").replaceChildren(...set.notes.map((note) => element("li", {}, note)));
  }

  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const id of CONTROLS) {
      if (!wanted.has(id)) continue;
      const control = byId(id);
      const before = control.value;
      control.value = wanted.get(id);
      if (control.tagName === "SELECT" && control.selectedIndex < 0) control.value = before;
      if (id === "set" && control.value !== before) chooseSet(Number(control.value));
    }
  }

  function writeAddress() {
    const wanted = new URLSearchParams();
    for (const id of CONTROLS) if (byId(id).value !== "" && byId(id).value !== initial[id]) wanted.set(id, byId(id).value);
    if (initial.against !== "" && byId("against").value === "") wanted.set("against", "");
    history.replaceState(null, "", wanted.size ? "#" + wanted : "#queries");
  }

  function startTheme() {
    // Storage may be refused to a page opened from a file; the choice then lasts as long as the page.
    let stored = "";
    try { stored = localStorage.getItem("dgl-scale-theme") || ""; } catch { stored = ""; }
    const apply = (theme) => { document.documentElement.dataset.theme = theme; };
    apply(stored);
    byId("theme").value = stored;
    byId("theme-label").hidden = false;
    byId("theme").addEventListener("change", () => {
      apply(byId("theme").value);
      try { localStorage.setItem("dgl-scale-theme", byId("theme").value); } catch { /* as above */ }
    });
  }

  let initial = {};
  function startGallery() {
    fill("set", data.sets.map((set, number) => [String(number), set.name]), "0");
    byId("set").parentElement.hidden = data.sets.length < 2;
    byId("length").append(...LENGTHS.map((name) => element("option", { value: name }, name + ": " + data.categories[name])));
    byId("words").append(...ABOUT.map((name) => element("option", { value: name }, name + ": " + data.categories[name])), element("option", { value: "neither" }, "neither"));
    const start = () => {
      chooseSet(0);
      initial = Object.fromEntries(CONTROLS.map((id) => [id, byId(id).value]));
    };
    start();
    readAddress();
    byId("gallery").hidden = false;
    draw();
    const changed = (event) => {
      if (event.target.id === "set") chooseSet(Number(byId("set").value));
      draw();
      writeAddress();
    };
    byId("filters").addEventListener("input", changed);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    // The form is reset after its event has been handled.
    byId("filters").addEventListener("reset", () => setTimeout(() => { start(); draw(); writeAddress(); }));
    byId("more").addEventListener("click", () => {
      const first = drawMore();
      first.tabIndex = -1;
      first.focus();
    });
    window.addEventListener("hashchange", () => { if (location.hash.includes("=")) { start(); readAddress(); draw(); } });
  }

  startTheme();
  if (data.sets.length) startGallery();
})();
