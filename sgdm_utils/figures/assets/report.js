(() => {
  "use strict";
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const D = JSON.parse(source.textContent);
  const root = document.getElementById("explorer");
  const state = { item: 0, subject: 0 };

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "onclick" || key === "onchange") node[key] = value;
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((c) => c !== null));
    return node;
  };
  const pic = (sprite, index, n, label) =>
    make("span", { class: `pic ${sprite}`, role: "img", "aria-label": label,
      style: `background-position:0 ${(100 * index) / Math.max(1, n - 1)}%` });
  const show = (x, digits = 2) => (x === null || x === undefined ? "" : x.toFixed(digits));
  const n = D.items.length;

  const unpack = (packed, size) => {
    const raw = atob(packed.data);
    return (i) => {
      const out = new Float32Array(size);
      for (let k = 0; k < size; k++) {
        const byte = raw.charCodeAt(i * size + k);
        out[k] = (byte > 127 ? byte - 256 : byte) * packed.scale[i];
      }
      return out;
    };
  };
  const epochs = D.eeg.subjects.map((p) => unpack(p, D.eeg.channels.length * D.eeg.times.length));

  /* butterfly plot: one line for each channel, coloured from front to back */
  const NS = "http://www.w3.org/2000/svg";
  const svg = (tag, attributes, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const butterfly = (values) => {
    const [W, H, left, bottom, top] = [460, 190, 34, 24, 8];
    const t = D.eeg.times;
    const peak = Math.max(1e-9, ...Array.from(values, Math.abs)) * 1.05;
    const x = (s) => left + ((s - t[0]) / (t[t.length - 1] - t[0])) * (W - left - 6);
    const y = (v) => top + ((peak - v) / (2 * peak)) * (H - top - bottom);
    const plot = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img",
      "aria-label": `Averaged EEG, ${D.eeg.channels.length} channels, up to ${peak.toFixed(1)} ${D.eeg.unit}` });
    const step = t[t.length - 1] - t[0] > 0.9 ? 0.2 : 0.1;
    for (let s = Math.ceil(t[0] / step) * step; s <= t[t.length - 1] + 1e-9; s += step) {
      plot.append(svg("line", { x1: x(s), x2: x(s), y1: top, y2: H - bottom, stroke: "currentColor",
        "stroke-opacity": Math.abs(s) < 1e-9 ? 0.55 : 0.1 }));
      plot.append(svg("text", { x: x(s), y: H - 8, "text-anchor": "middle" }, `${Math.round(s * 1000)}`));
    }
    const round = peak > 2 ? Math.floor(peak) : Math.floor(peak * 10) / 10;
    for (const v of [-round, 0, round]) {
      plot.append(svg("line", { x1: left, x2: W - 6, y1: y(v), y2: y(v), stroke: "currentColor", "stroke-opacity": 0.12 }));
      plot.append(svg("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, `${v}`));
    }
    for (const s of D.eeg.moments)
      plot.append(svg("line", { x1: x(s), x2: x(s), y1: top, y2: H - bottom, stroke: "currentColor", "stroke-dasharray": "3 3", "stroke-opacity": 0.5 }));
    for (let c = 0; c < D.eeg.channels.length; c++) {
      let d = "";
      for (let k = 0; k < t.length; k++)
        d += `${k ? "L" : "M"}${x(t[k]).toFixed(1)} ${y(values[c * t.length + k]).toFixed(1)}`;
      plot.append(svg("path", { d, fill: "none", stroke: D.eeg.colours[c], "stroke-width": 0.9, "stroke-opacity": 0.75 }));
    }
    return plot;
  };

  const block = (title, ...children) => make("div", {}, make("h3", {}, title), ...children);
  const sets = () => D.conditions.map((c) => ({ ...c, key: `${c.name}|${c.joint ? "all" : D.subjects[state.subject]}` }));

  const scoreTable = (i) => {
    const head = make("tr", {}, make("th", {}, ""), make("th", { scope: "col" }, "picture"), ...D.metrics.map((m) => make("th", { scope: "col" }, m.label)));
    const rows = sets().map((c) => make("tr", { class: c.name === "eeg" ? "main-row" : null },
      make("th", { scope: "row" }, c.label),
      make("td", {}, pic(D.sprites[c.key], i, n, `${c.label}: ${D.items[i].concept}`)),
      ...D.metrics.map((m) => make("td", { class: "num" }, show(D.scores[m.name][c.key][i])))));
    const chance = make("tr", {}, make("th", { scope: "row" }, "chance (else: shuffled)"), make("td", {}),
      ...D.metrics.map((m) => make("td", { class: "num" }, m.chance === null ? "" : show(m.chance))));
    return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "scores of this picture" },
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows, chance)));
  };

  const neighbours = (i) => {
    const own = D.neighbours[state.subject][i];
    const cards = own.nearest.map((j, k) => make("figure", { class: j === i ? "hit" : null },
      pic(D.sprites.seen, j, n, D.items[j].concept),
      make("figcaption", {}, `${k + 1}. ${D.items[j].concept}${j === i ? " (seen)" : ""}`)));
    return [make("div", { class: "near" }, ...cards),
      make("p", {}, `The seen picture is number ${own.rank} of ${n} (chance: ${(n + 1) / 2} on average).`)];
  };

  const stage = make("div", { "aria-live": "polite" });
  const draw = () => {
    const i = state.item, s = state.subject, item = D.items[i], subject = D.subjects[s];
    const at = (name) => pic(D.sprites[name], i, n, `${name}: ${item.concept}`);
    const maps = D.eeg.maps ? make("div", { class: "topo" }, ...D.eeg.moments.map((m, k) => make("figure", {},
      pic(D.eeg.maps[s], i * D.eeg.moments.length + k, n * D.eeg.moments.length, `scalp map at ${Math.round(m * 1000)} ms`),
      make("figcaption", {}, `${Math.round(m * 1000)} ms`)))) : null;
    const measured = block(`Measured: EEG of ${subject}, mean of ${D.eeg.averaged[s][i]} presentations`, butterfly(epochs[s](i)),
      make("p", {}, `${D.eeg.unit} over ms from onset; ${D.eeg.channels.length} channels, light: front, dark: back of the head. Maps: nose up, each with its own range.`), maps);
    measured.className = "wide";
    stage.replaceChildren(
      make("div", { class: "flow" },
        block("Seen", at("seen"), make("p", {}, item.caption)),
        measured,
        block("Structure", at("true_map"), make("p", {}, "of the picture"), at(`map_${s}`), make("p", {}, "decoded from the EEG")),
        block("Rebuilt", pic(D.sprites[`eeg|${subject}`], i, n, `reconstruction from EEG: ${item.concept}`), make("p", {}, "from the EEG"),
          pic(D.sprites[`shuffled_eeg|${subject}`], i, n, `from shuffled EEG`), make("p", {}, "control: from the EEG of another picture"))),
      make("div", { class: "under" },
        block("All conditions of this picture, with their scores", scoreTable(i)),
        block("Meaning: the test pictures nearest to what the EEG says", ...neighbours(i))));
    strip.childNodes.forEach((b, k) => b.setAttribute("aria-pressed", String(k === i)));
    select.value = String(i);
    radios.forEach((r, k) => { r.checked = k === s; });
  };
  const go = (change) => {
    Object.assign(state, change);
    state.item = (state.item + n) % n;
    draw();
    history.replaceState(null, "", `#explore=${D.items[state.item].id},${D.subjects[state.subject]}`);
  };

  const radios = D.subjects.map((name, k) => make("input", { type: "radio", name: "subject", value: k, onchange: () => go({ subject: k }) }));
  const select = make("select", { "aria-label": "test picture", onchange: (e) => go({ item: Number(e.target.value) }) },
    ...D.items.map((item, k) => make("option", { value: k }, `${item.concept} (${item.id})`)));
  const strip = make("div", { class: "strip", role: "group", "aria-label": "test pictures; left and right arrow keys move" },
    ...D.items.map((item, k) => make("button", { type: "button", "aria-label": item.concept, title: item.concept, onclick: () => go({ item: k }) }, pic(D.sprites.seen, k, n, item.concept))));
  strip.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    go({ item: state.item + move });
    strip.childNodes[state.item].focus();
  });
  root.append(
    make("div", { class: "bar" },
      make("fieldset", {}, make("legend", {}, "Subject"), ...D.subjects.map((name, k) => make("label", {}, radios[k], name))),
      make("label", {}, "Picture ", select),
      make("span", {}, make("button", { type: "button", onclick: () => go({ item: state.item - 1 }) }, "previous"), " ",
        make("button", { type: "button", onclick: () => go({ item: state.item + 1 }) }, "next"))),
    strip, stage);
  root.hidden = false;

  const wanted = /^#explore=([^,]+),(.+)$/.exec(decodeURIComponent(location.hash));
  if (wanted) {
    state.item = Math.max(0, D.items.findIndex((item) => item.id === wanted[1]));
    state.subject = Math.max(0, D.subjects.indexOf(wanted[2]));
    draw();
    root.scrollIntoView();
  } else draw();
})();
