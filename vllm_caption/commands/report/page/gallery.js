// The gallery: search, filters, pages and the detail view over columns that fit in one block.
// Text is only ever set as textContent; nothing is fetched.
(() => {
  "use strict";
  const PAGE = 48;
  const $ = (id) => document.getElementById(id);
  const FIELDS = ["q", "difference", "status", "kind", "flag", "type", "backdrop", "order", "pictured"];
  let data, eachWord, endsUnspaced, found = [], page = 0, opened = -1, terms = [];

  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const nameOf = (column, i) => (column.of[i] < 0 ? "" : column.names[column.of[i]]);
  const short = (text, most) => (text.length > most ? "…" + text.slice(1 - most) : text);
  const number = (n) => n.toLocaleString("en-US");
  const counted = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
  const label = (side) => (side < 26 ? String.fromCharCode(65 + side) : String(side + 1));
  const hasRow = (side, i) => side.status[i] >= 0;
  // The fields of an answer, as [name, value]; JSON that was cut off for the page is shown as a single field.
  const fieldsOf = (json) => {
    if (!json) return [];
    const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));
    try { return Object.entries(JSON.parse(json)).map(([name, value]) => [name, shown(value)]); }
    catch { return [["fields", json]]; }
  };
  const promptOf = (side, i) => data.prompts[nameOf(side.recipe, i)] || "";
  const flagsOf = (side, i) => data.flags.filter((_, bit) => (side.flags[i] >> bit) & 1);

  async function load() {
    const text = atob($("data").textContent.trim());
    $("data").remove();
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    data = JSON.parse(await new Response(stream).text());
    eachWord = new RegExp(`[${data.han}]\\s*|[^\\s${data.han}]+\\s*`, "gu");
    endsUnspaced = new RegExp(`[${data.han}]$`, "u");
    data.size = data.file.length;
    data.pictured = new Uint8Array(data.size);
    for (const i of Object.keys(data.pictures)) data.pictured[i] = 1;
    const searched = (json) => fieldsOf(json).map((field) => field.join(": ")).join("\n");
    for (const side of data.sides) side.searched = side.fields && side.fields.map(searched);
    fillSelects();
    readAddress();
    filter(true);
    document.documentElement.dataset.ready = "yes";
  }

  function fillSelects() {
    const count = (values) => {
      const counts = new Map();
      for (const value of values) if (value !== "") counts.set(value, (counts.get(value) || 0) + 1);
      return [...counts].sort((a, b) => b[1] - a[1]);
    };
    const fill = (id, pairs) => {
      const select = $(id);
      select.append(new Option("any", ""));
      for (const [value, n] of pairs) select.append(new Option(`${value.slice(0, 40)} (${number(n)})`, value));
      select.parentElement.hidden = pairs.length === 0;
    };
    const overSides = (pick) => {
      const all = [];
      for (let i = 0; i < data.size; i++) all.push(...new Set(data.sides.flatMap((s) => pick(s, i))));
      return all;
    };
    const states = (s, i) => (!hasRow(s, i) ? [] : s.status[i] ? ["failed"]
      : ["captioned", s.flags[i] ? "flagged" : "not flagged"]);
    fill("status", count(overSides(states)));
    fill("kind", count(overSides((s, i) => [nameOf(s.kind, i)])));
    fill("flag", count(overSides(flagsOf)));
    const numPictures = Object.keys(data.pictures).length;
    $("pictured").parentElement.hidden = numPictures === 0 || numPictures === data.size;
    for (const id of ["type", "backdrop"]) fill(id, count(data[id].of.map((n) => data[id].names[n] ?? "")));
  }

  // ---- filters ---------------------------------------------------------------------------------

  const value = (id) => { const e = $(id); return !e ? "" : e.type === "checkbox" ? e.checked : e.value; };

  function hasTerms(i) {
    let text = `${data.file[i]}\n${nameOf(data.document, i)}\n${nameOf(data.type, i)}`;
    for (const side of data.sides) text += "\n" + side.text[i] + (side.searched ? "\n" + side.searched[i] : "");
    text = text.toLowerCase();
    return terms.every((t) => text.includes(t));
  }

  function tests() {
    const all = [];
    const any = (test) => all.push((i) => data.sides.some((s) => hasRow(s, i) && test(s, i)));
    const status = value("status"), kind = value("kind"), flag = value("flag");
    if (status === "captioned") any((s, i) => s.status[i] === 0);
    if (status === "failed") any((s, i) => s.status[i] === 1);
    if (status === "flagged") any((s, i) => s.status[i] === 0 && s.flags[i] !== 0);
    if (status === "not flagged") any((s, i) => s.status[i] === 0 && s.flags[i] === 0);
    if (kind) any((s, i) => nameOf(s.kind, i) === kind);
    if (flag) { const bit = 1 << data.flags.indexOf(flag); any((s, i) => (s.flags[i] & bit) !== 0); }
    for (const id of ["type", "backdrop"]) {
      const wanted = data[id].names.indexOf(value(id));
      if (value(id)) all.push((i) => data[id].of[i] === wanted);
    }
    if (value("pictured")) all.push((i) => data.pictured[i]);
    const differs = (pick) => (i) => data.sides.some((s) => pick(s, i) !== pick(data.sides[0], i));
    const done = (i) => data.sides.every((s) => s.status[i] === 0);
    const text = differs((s, i) => s.text[i]);
    if (value("difference") === "text") all.push((i) => done(i) && text(i));
    if (value("difference") === "same") all.push((i) => done(i) && !text(i));
    if (value("difference") === "flags") all.push(differs((s, i) => s.flags[i]));
    if (value("difference") === "only") all.push((i) => data.sides.some((s) => !hasRow(s, i)));
    if (value("difference") === "status") all.push(differs((s, i) => s.status[i]));
    terms = [...value("q").toLowerCase().matchAll(/"([^"]+)"?|([^\s"]+)/g)].map((m) => m[1] || m[2]);
    if (terms.length) all.push(hasTerms);
    return all;
  }

  function sorted(items) {
    const most = (column) => (i) => Math.max(...data.sides.map((s) => s[column][i]));
    const words = most("words"), order = value("order");
    const gap = (i) => Math.max(...data.sides.map((s) => Math.abs(s.words[i] - data.sides[0].words[i])));
    const by = (key) => {
      const keys = new Map(items.map((i) => [i, key(i)]));
      return items.sort((a, b) => keys.get(b) - keys.get(a) || a - b);
    };
    if (order === "long") return by(words);
    if (order === "short") return by((i) => (data.sides.some((s) => s.status[i] === 0) ? -words(i) : -1e9));
    if (order === "slow") return by(most("ms"));
    if (order === "gap") return by(gap);
    if (order === "document") return items;
    const bad = (i) => (data.sides.some((s) => s.status[i] === 1) ? 2 : data.sides.some((s) => s.flags[i] > 0) ? 1 : 0);
    if (order === "trouble") return by(bad);
    return items.filter((i) => data.pictured[i]).concat(items.filter((i) => !data.pictured[i]));
  }

  function filter(keepPage = false) {
    const began = performance.now();
    const all = tests(), chosen = [];
    for (let i = 0; i < data.size; i++) if (all.every((test) => test(i))) chosen.push(i);
    found = sorted(chosen);
    if (!keepPage) page = 0;
    draw();
    writeAddress();
    document.documentElement.dataset.filterMs = (performance.now() - began).toFixed(1);
  }

  // ---- cards -----------------------------------------------------------------------------------

  function draw() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    $("found").textContent = found.length === data.size ? (data.size > 1 ? "All " : "") + counted(data.size, "item")
      : found.length ? `${number(found.length)} of ${counted(data.size, "item")}`
      : "No items match. Clear a filter, or search for fewer words.";
    $("cards").className = data.sides.length > 1 ? "wide" : "";
    $("cards").setAttribute("aria-busy", "false");
    $("cards").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((i, n) => {
      const entry = make("li");
      entry.append(card(i, page * PAGE + n));
      return entry;
    }));
    $("page").value = page + 1;
    $("page").max = pages;
    $("pages").textContent = `of ${number(pages)}`;
    $("pager").hidden = pages === 1;
    setEnds($("previous"), $("next"), page === 0, page >= pages - 1);
  }

  // A button that is disabled would drop the focus.
  function setEnds(back, on, isFirst, isLast) {
    const focused = document.activeElement;
    back.disabled = isFirst;
    on.disabled = isLast;
    if (focused === back && isFirst) on.focus();
    if (focused === on && isLast) back.focus();
  }

  function card(i, place) {
    const sides = data.sides.filter((s) => hasRow(s, i));
    const failed = sides.some((s) => s.status[i] === 1), flagged = sides.some((s) => s.flags[i]);
    const button = make("button", `card ${failed ? "failed" : flagged ? "flagged" : ""}`);
    button.type = "button";
    button.dataset.item = i;
    button.append(picture(i, false), texts(i));
    const meta = make("div", "meta");
    const kind = nameOf(data.type, i) || (data.type.names.some((name) => name) ? "no type" : "");
    const where = [kind, nameOf(data.document, i)].filter((name) => name).join(" · ");
    meta.append(make("div", "", short(data.file[i], 48)), make("div", "", where));
    button.append(meta);
    button.addEventListener("click", () => open(place));
    return button;
  }

  function picture(i, large) {
    const uri = data.pictures[i];
    if (!uri) {
      const note = data.notes[i] || (large ? "This page has no picture of it." : "no picture");
      return make("div", "picture none", large ? note : note.slice(0, 80));
    }
    const frame = make("div", "picture"), image = make("img");
    image.alt = "the image, as the model saw it";
    image.src = uri.startsWith("data:image/webp;base64,") ? uri : "";
    frame.append(image);
    return frame;
  }

  function texts(i) {
    const several = data.sides.length > 1;
    const sides = make("div", "sides");
    sides.append(...data.sides.map((side, n) => {
      const block = make("div", several ? "side" : "");
      const chips = make("div", "chips");
      if (several) chips.append(make("span", "label", label(n)));
      if (!hasRow(side, i)) { chips.append(make("span", "meta", "no row")); block.append(chips); return block; }
      if (side.status[i] === 1) chips.append(make("span", "chip kind", nameOf(side.kind, i) || "failed"));
      for (const flag of flagsOf(side, i)) chips.append(make("span", "chip flag", flag));
      if (several) chips.append(make("span", "meta", promptOf(side, i)));
      if (several && side.status[i] === 0) chips.append(make("span", "meta", counted(side.words[i], "word")));
      const text = make("div", side.status[i] === 1 ? "text reason" : "text");
      const first = data.sides[0];
      const comparable = n > 0 && side.status[i] === 0 && first.status[i] === 0;
      if (comparable) text.append(...difference(first.text[i], side.text[i]));
      else text.append(...marked(side.text[i]));
      if (chips.childNodes.length) block.append(chips);
      const json = side.fields ? side.fields[i] : "";
      if (!json || json !== side.text[i] || comparable) block.append(text);
      for (const [name, said] of fieldsOf(json)) {
        const field = make("div", "field");
        field.append(make("span", "meta", `${name}: `), ...marked(said));
        block.append(field);
      }
      return block;
    }));
    return sides;
  }

  function marked(text) {
    const folded = text.toLowerCase(), parts = [];
    if (!terms.length || folded.length !== text.length) return [text];
    for (let at = 0; at < text.length;) {
      let next = -1, size = 0;
      for (const term of terms) {
        const place = folded.indexOf(term, at);
        if (place >= 0 && (next < 0 || place < next)) { next = place; size = term.length; }
      }
      if (next < 0) { parts.push(text.slice(at)); break; }
      parts.push(text.slice(at, next), make("mark", "", text.slice(next, next + size)));
      at = next + size;
    }
    return parts;
  }

  // Words that only the second has, and words that only the first has, by their longest common subsequence.
  function difference(first, second) {
    const a = (first.match(eachWord) || []).slice(0, 300), b = (second.match(eachWord) || []).slice(0, 300);
    const plain = (word) => word.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "") || word.trim();
    const x = a.map(plain), y = b.map(plain);  // case and punctuation are no difference in wording
    const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i][j] = x[i] === y[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const parts = [];
    let tag = "", words = [];
    const flush = () => {
      const text = words.join(""), said = text.trimEnd();
      if (said) parts.push(tag ? make(tag, "", said) : said);
      if (said !== text || !endsUnspaced.test(said)) parts.push(" ");
      words = [];
    };
    const add = (kind, word) => { if (kind !== tag) { flush(); tag = kind; } words.push(word); };
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && x[i] === y[j]) { add("", b[j++]); i++; }
      else if (j >= b.length || (i < a.length && best[i + 1][j] >= best[i][j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
    flush();
    return parts;
  }

  // ---- detail ----------------------------------------------------------------------------------

  function open(place) {
    opened = Math.min(Math.max(place, 0), found.length - 1);
    const i = found[opened], title = make("h2", "", data.file[i]);
    title.id = "detail-title";
    $("detail-body").replaceChildren(picture(i, true), title, texts(i), ...facts(i));
    $("detail-place").textContent = `${number(opened + 1)} of ${number(found.length)}`;
    if (!$("detail").open) {
      $("detail").showModal();
      $("detail").focus();  // not the first link in it, which may be far down
    }
    $("detail").scrollTop = 0;
    setEnds($("detail-previous"), $("detail-next"), opened === 0, opened === found.length - 1);
  }

  // What is known of an item, then of its caption in each folder.
  function facts(i) {
    const listed = (pairs) => {
      const list = make("dl");
      for (const [name, text] of pairs) {
        if (text === "" || text === undefined) continue;
        const pair = make("div");
        pair.append(make("dt", "", name), make("dd", "", text));
        list.append(pair);
      }
      return list;
    };
    const known = (n, text) => (n >= 0 ? text ?? String(n) : "");
    const item = listed([
      ["document", nameOf(data.document, i)],
      ["type", nameOf(data.type, i)],
      ["size", data.width[i] > 0 ? `${data.width[i]} × ${data.height[i]} pixels` : ""],
      ["backdrop", nameOf(data.backdrop, i)],
      ["picture", data.pictures[i] ? data.notes[i] : ""],
    ]);
    if (data.root) {
      const link = make("a", "", "open the image file");
      link.href = data.root.replace(/\/$/, "") + "/" + data.file[i].split("/").map(encodeURIComponent).join("/");
      item.append(link);
    }
    const lists = [item];
    data.sides.forEach((side, n) => {
      if (!hasRow(side, i)) return;
      const list = listed([
        ["prompt", promptOf(side, i)],
        ["words", side.status[i] === 0 ? String(side.words[i]) : ""],
        ["tokens", known(side.tokens[i])],
        ["generation", known(side.ms[i], `${number(side.ms[i])} ms`)],
        ["engine", known(side.engine[i])],
        ["attempts", side.attempts[i] > 0 ? String(side.attempts[i]) : ""],
        ["recipe", nameOf(side.recipe, i) || "unknown"],
      ]);
      if (data.sides.length > 1) list.prepend(make("span", "label", label(n)));
      lists.push(list);
    });
    return lists;
  }

  // ---- address, keys, buttons ------------------------------------------------------------------

  function writeAddress() {
    const state = new URLSearchParams();
    for (const id of FIELDS) if (value(id)) state.set(id, value(id) === true ? "1" : value(id));
    if (page) state.set("page", page + 1);
    const text = state.toString();
    try { history.replaceState(null, "", text ? "#?" + text : location.hash.startsWith("#?") ? "#" : location.hash); }
    catch { /* if the address cannot be changed, only the link is lost */ }
  }

  function readAddress() {
    if (!location.hash.startsWith("#?")) return;
    const state = new URLSearchParams(location.hash.slice(2));
    for (const id of FIELDS) {
      const element = $(id), text = state.get(id);
      if (!element || text === null) continue;
      if (element.type === "checkbox") element.checked = true; else element.value = text;
    }
    page = Math.max(0, (parseInt(state.get("page"), 10) || 1) - 1);
  }

  const turn = (to) => { page = to; draw(); writeAddress(); $("found").scrollIntoView({ block: "nearest" }); };
  let waiting = 0;
  const filterIn = (ms) => {
    $("cards").setAttribute("aria-busy", "true");
    clearTimeout(waiting);
    waiting = setTimeout(() => filter(), ms);
  };
  $("q").addEventListener("input", () => filterIn(80));
  $("filters").addEventListener("change", (event) => { if (event.target.id !== "q") filter(); });
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  $("filters").addEventListener("reset", () => filterIn(0));
  $("previous").addEventListener("click", () => turn(page - 1));
  $("next").addEventListener("click", () => turn(page + 1));
  $("page").addEventListener("change", () => turn((parseInt($("page").value, 10) || 1) - 1));
  $("detail-previous").addEventListener("click", () => open(opened - 1));
  $("detail-next").addEventListener("click", () => open(opened + 1));
  $("detail-close").addEventListener("click", () => $("detail").close());
  $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
  $("detail").addEventListener("close", () => {
    const i = found[opened];
    turn(Math.floor(opened / PAGE));
    document.querySelector(`[data-item="${i}"]`)?.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if ($("detail").open) {
      if (event.key === "ArrowLeft" && opened > 0) open(opened - 1);
      if (event.key === "ArrowRight" && opened < found.length - 1) open(opened + 1);
    } else if (event.key === "/" && !/^(INPUT|SELECT)$/.test(event.target.tagName)) {
      event.preventDefault();
      $("q").focus();
    }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.show");
    if (!button) return;
    $("filters").reset();
    const select = $(button.dataset.field);
    setTimeout(() => {
      select.value = button.dataset.value;
      filter();
      $("gallery").scrollIntoView();
      select.focus({ preventScroll: true });
    });
  });
  $("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  load().catch((error) => {
    $("found").textContent = `The gallery could not be opened (${error.message}). It needs a browser from 2023 or later.`;
    throw error;
  });
})();
