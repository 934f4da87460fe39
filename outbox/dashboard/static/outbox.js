// What pages do beyond links and forms: look again when something has changed, draw charts, propose filters, obey keys.
// All of it is told by attributes: data-live, data-chart, data-do, data-key, data-row.
"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const element = (name, text = "", className = "") => Object.assign(document.createElement(name), { textContent: text, className });

  // --- Live: a stream says that something has changed; the page then fetches itself and takes over what differs.

  const live = {
    source: null, address: null, paused: sessionStorage.getItem("outbox-paused") === "yes", lost: false, late: false, busy: false,

    follow() {
      const address = document.hidden || live.paused ? null : one("#live")?.dataset.live ?? null;
      if (address !== live.address) {
        live.source?.close();
        live.source = null;
        live.address = address;
        if (address) live.open(address);
      }
      live.show();
    },

    open(address) {
      const source = (live.source = new EventSource(address));
      // The first one comes at once: what has changed between the page and its stream is not missed.
      source.addEventListener("changed", () => { live.lost = false; live.show(); live.look(); });
      source.addEventListener("beat", () => { live.lost = false; live.show(); });
      source.addEventListener("error", () => { live.lost = true; live.show(); });
    },

    // Not while somebody selects or types: what they look at must not move.
    isBusy: () => Boolean(one("#live input:checked, #live details.more[open]") || one("#live input:not([type=checkbox]):focus, #live select:focus") || one("dialog[open]") || String(getSelection())),

    async look() {
      if (live.busy || live.isBusy()) { live.late = true; return; }
      live.busy = true;
      live.late = false;
      try {
        await htmx.ajax("GET", location.pathname + location.search, { target: "#live", select: "#live", swap: "outerMorph", lookedAt: location.href });
      } finally {
        setTimeout(() => { live.busy = false; if (live.late) live.look(); }, 1000); // at most once a second
      }
    },

    show() {
      const button = one(".pulse");
      if (!button) return;
      button.hidden = !one("#live")?.dataset.live;
      button.classList.toggle("paused", live.paused);
      button.classList.toggle("lost", live.lost && !live.paused);
      one(".word", button).textContent = live.paused ? "paused" : live.lost ? "no connection" : "live";
      button.setAttribute("aria-pressed", String(live.paused));
    },

    toggle() {
      live.paused = !live.paused;
      sessionStorage.setItem("outbox-paused", live.paused ? "yes" : "no");
      live.follow();
    },
  };
  document.addEventListener("visibilitychange", live.follow);
  // By the time the answer is there they may have begun to select, or be on another page.
  document.addEventListener("htmx:before:swap", (event) => {
    const { lookedAt } = event.detail.ctx;
    if (lookedAt && (live.isBusy() || lookedAt !== location.href)) { live.late = true; event.preventDefault(); }
  });

  // --- Charts.

  const charts = new Map(); // by the id of their figure
  const synced = uPlot.sync("outbox");
  const probe = document.documentElement.appendChild(element("i", "", "hidden")); // a canvas takes no var()
  const colour = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  const tones = { one: "main", two: "q2", three: "bad" };
  const inTone = (tone) => colour(tones[tone] ?? tone);

  const seconds = (value) => {
    if (value == null) return "–";
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
      if (value >= size) return `${+(value / size).toFixed(value < 10 * size ? 1 : 0)} ${unit}`;
    }
    return value === 0 ? "0" : `${+(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  };
  const count = (value) => (value == null ? "–" : value.toLocaleString("en"));

  // Stacked from the bottom: each series is drawn as the sum of itself and those before it, the last one first.
  const stacked = (series) => {
    const sums = series[0].values.map(() => 0);
    return series.map((each) => each.values.map((value, n) => (sums[n] += value ?? 0))).reverse();
  };

  const draw = (figure) => {
    const chart = JSON.parse(figure.dataset.chart);
    const place = one(".plot", figure);
    const said = chart.unit === "seconds" ? seconds : count;
    const empty = !chart.series.some((each) => each.values.some(Boolean));
    const series = chart.stacked ? [...chart.series].reverse() : chart.series;
    const data = [chart.times, ...(chart.stacked && series.length ? stacked(chart.series) : series.map((each) => each.values))];
    const shape = JSON.stringify([series.map((each) => [each.label, each.tone]), chart.unit, document.documentElement.dataset.theme, matchMedia("(prefers-color-scheme: dark)").matches]);
    const known = charts.get(figure.id);
    if (known && known.shape === shape && known.plot.root.isConnected && known.empty === empty) {
      known.series = series;
      known.plot.setData(data);
      return;
    }
    known?.plot.destroy();
    place.replaceChildren();
    const kept = { shape, series, empty };
    const axis = { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") }, font: "12px system-ui, sans-serif" };
    // By the day, or by the minute, as the one who looks writes them.
    const day = new Intl.DateTimeFormat([], { day: "numeric", month: "short" });
    const minute = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
    const moments = (_plot, ticks, _axis, _space, apart) => ticks.map((tick) => (apart >= 86400 ? day : minute).format(tick * 1000));
    const bars = chart.stacked ? uPlot.paths.bars({ size: [0.9, 40], align: 1 }) : undefined;
    kept.plot = new uPlot({
      width: Math.max(200, place.clientWidth), height: 200,
      cursor: { sync: { key: synced.key }, drag: { x: false, y: false }, points: { show: !chart.stacked } },
      legend: { live: true },
      scales: { x: { time: true }, y: { range: (_plot, _low, high) => [0, empty || !high ? 1 : high * 1.08] } },
      axes: [{ ...axis, values: moments, space: 60 }, { ...axis, size: 62, values: (_plot, ticks) => ticks.map((tick) => (empty ? "" : said(tick))) }],
      series: [
        { label: "time", value: (_plot, moment) => (moment == null ? "–" : new Date(moment * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" })) },
        ...series.map((each, n) => ({
          label: each.label,
          stroke: inTone(each.tone),
          fill: chart.stacked ? inTone(each.tone) : undefined,
          width: chart.stacked ? 0 : 2,
          paths: bars,
          spanGaps: false,
          points: { show: chart.stacked ? false : undefined, size: 5 },
          value: (_plot, _sum, _series, at) => said(at == null ? null : kept.series[n].values[at]),
        })),
      ],
    }, data, place);
    kept.plot.over.addEventListener("click", () => lead(figure, kept.plot.cursor.idx));
    charts.set(figure.id, kept);
  };

  // To the jobs that were enqueued in the time under the mouse.
  const lead = (figure, at) => {
    if (at == null) return;
    const { times, step } = JSON.parse(figure.dataset.chart);
    const moment = (time) => new Date(time * 1000).toISOString().slice(0, 19) + "Z";
    const terms = [`after:${moment(times[at])}`, `before:${moment(times[at] + step)}`, ...(figure.dataset.search ? [figure.dataset.search] : [])];
    htmx.ajax("GET", `${figure.dataset.jobs}?q=${encodeURIComponent(terms.join(" "))}`, { target: "body", swap: "innerMorph", push: "true" });
  };

  const drawAll = () => {
    for (const [id, { plot }] of charts) if (!document.getElementById(id)) { plot.destroy(); charts.delete(id); }
    all("[data-chart]").forEach(draw);
  };
  addEventListener("resize", () => {
    for (const { plot } of charts.values()) plot.setSize({ width: Math.max(200, plot.root.parentElement.clientWidth), height: 200 });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  // --- The filter bar: proposes words, and values where they are known.

  const proposals = {
    at: -1,

    term: (input) => {
      const before = input.value.slice(0, input.selectionStart ?? input.value.length);
      return before.slice(before.lastIndexOf(" ") + 1);
    },

    show(input) {
      const list = one("#proposals");
      const term = proposals.term(input);
      const [word, value] = term.includes(":") ? term.split(/:(.*)/s) : [term, null];
      const found = value === null
        ? Object.entries(JSON.parse(input.dataset.words)).filter(([name]) => name.startsWith(word)).map(([name, meaning]) => [name.endsWith(".") ? name : `${name}:`, meaning])
        : (JSON.parse(input.dataset.known)[word] ?? []).filter((each) => each.includes(value) && each !== value).map((each) => [`${word}:${/[\s"\\]/.test(each) ? JSON.stringify(each) : each}`, ""]);
      proposals.at = -1;
      list.replaceChildren(...found.slice(0, 12).map(([text, meaning], n) => {
        const item = element("li");
        item.id = `proposal-${n}`;
        item.setAttribute("role", "option");
        item.dataset.text = text;
        item.append(element("span", text), element("span", meaning, "dim"));
        return item;
      }));
      proposals.open(input, found.length > 0);
    },

    open(input, isOpen) {
      one("#proposals").hidden = !isOpen;
      input.setAttribute("aria-expanded", String(isOpen));
      if (!isOpen) input.removeAttribute("aria-activedescendant");
    },

    move(input, step) {
      const items = all("#proposals li");
      proposals.at = (proposals.at + step + items.length) % items.length;
      items.forEach((item, n) => item.setAttribute("aria-selected", String(n === proposals.at)));
      items[proposals.at]?.scrollIntoView({ block: "nearest" });
      input.setAttribute("aria-activedescendant", items[proposals.at]?.id ?? "");
    },

    take(input, text) {
      const caret = input.selectionStart ?? input.value.length;
      const start = caret - proposals.term(input).length;
      const whole = text + (/[:.]$/.test(text) ? "" : " ");
      input.value = input.value.slice(0, start) + whole + input.value.slice(caret).trimStart();
      input.setSelectionRange(start + whole.length, start + whole.length);
      proposals.show(input);
    },

    key(event) {
      const input = event.target;
      const isOpen = !one("#proposals").hidden;
      if (event.key === "Escape") { event.preventDefault(); isOpen ? proposals.open(input, false) : input.blur(); return; }
      if (!isOpen) return;
      if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); proposals.move(input, event.key === "ArrowDown" ? 1 : -1); }
      if ((event.key === "Enter" || event.key === "Tab") && proposals.at >= 0) { event.preventDefault(); proposals.take(input, all("#proposals li")[proposals.at].dataset.text); }
    },
  };
  document.addEventListener("input", ({ target }) => { if (target.id === "q") proposals.show(target); });
  document.addEventListener("focusin", ({ target }) => { if (target.id === "q") proposals.show(target); });
  document.addEventListener("focusout", ({ target }) => { if (target.id === "q") proposals.open(target, false); });
  document.addEventListener("keydown", (event) => { if (event.target.id === "q") proposals.key(event); });
  document.addEventListener("mousedown", (event) => {
    const item = event.target.closest?.("#proposals li");
    if (item) { event.preventDefault(); proposals.take(one("#q"), item.dataset.text); }
  });

  // --- What buttons do.

  const deeds = {
    pause: () => live.toggle(),
    help: () => one("#help").showModal(),
    theme: () => {
      const order = ["", "light", "dark"];
      const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "") + 1) % 3];
      if (next) document.documentElement.dataset.theme = next; else delete document.documentElement.dataset.theme;
      next ? localStorage.setItem("outbox-theme", next) : localStorage.removeItem("outbox-theme");
      drawAll();
    },
    copy: async (button) => {
      const before = button.textContent;
      try { await navigator.clipboard.writeText(button.dataset.copy); button.textContent = "Copied"; } catch { button.textContent = "Can't copy"; }
      setTimeout(() => { button.textContent = before; }, 1500);
    },
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-do]");
    if (button && deeds[button.dataset.do]) { event.preventDefault(); deeds[button.dataset.do](button); }
  });
  document.addEventListener("change", ({ target }) => {
    if (target.dataset?.do === "submit") target.form.requestSubmit();
    if (target.dataset?.do === "select-all") all('.rows input[name="id"]').forEach((box) => { box.checked = target.checked; });
    if (target.type === "checkbox") showSelected();
  });

  const showSelected = () => {
    const said = one(".selected");
    if (!said) return;
    const chosen = all('.rows input[name="id"]:checked').length;
    said.textContent = chosen ? `${chosen} selected:` : said.dataset.none;
    if (!chosen && live.late) live.look();
  };

  // --- Keys.

  let gone = 0; // when g was pressed
  let row = null; // the one that keys are about, by its address
  const rows = () => all(".rows tbody tr[data-row]");
  const mark = () => rows().forEach((each) => each.classList.toggle("at", each.dataset.row === row));
  const step = (by) => {
    const list = rows();
    const at = list.findIndex((each) => each.dataset.row === row);
    const next = list[Math.min(Math.max(at + by, 0), list.length - 1)];
    row = next?.dataset.row ?? null;
    mark();
    next?.scrollIntoView({ block: "nearest" });
  };
  const keys = {
    "/": () => { const bar = one("#q"); if (bar) { bar.focus(); bar.select(); } else one('nav a[data-key="j"]')?.click(); },
    "?": deeds.help, t: deeds.theme, p: deeds.pause,
    j: () => step(1), k: () => step(-1),
    x: () => { const box = one('tr.at input[name="id"]'); if (box) { box.checked = !box.checked; showSelected(); } },
    Enter: () => one("tr.at a")?.click(),
    r: () => one('[data-key-do="r"]')?.click(), c: () => one('[data-key-do="c"]')?.click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || one("dialog[open]")) return;
    if (event.target.closest?.("input, select, textarea, button, a, summary") && (event.key === "Enter" || !event.target.closest("button, a, summary"))) return;
    if (event.key === "g") { gone = Date.now(); return; }
    const act = Date.now() - gone < 1500 ? () => one(`nav a[data-key="${CSS.escape(event.key)}"]`)?.click() : keys[event.key];
    gone = 0;
    if (act) { event.preventDefault(); act(); }
  });

  // --- Whenever a page is there, be it new or changed.

  let toast = 0;
  const settle = () => {
    drawAll();
    live.follow();
    showSelected();
    mark();
    one("#key")?.focus();
    all("time[datetime]").forEach((time) => { time.title = new Date(time.dateTime).toLocaleString(); });
    const address = new URL(location.href);
    if (one(".toast") && address.searchParams.has("said")) {
      address.searchParams.delete("said");
      address.searchParams.delete("count");
      history.replaceState(history.state, "", address);
      clearTimeout(toast);
      toast = setTimeout(() => one(".toast")?.remove(), 4000);
    }
    const going = one('form[data-do="go-on"]');
    if (going && !going.dataset.sent) { going.dataset.sent = "yes"; setTimeout(() => going.isConnected && going.requestSubmit(), 100); }
  };
  document.addEventListener("htmx:after:settle", settle);
  document.addEventListener("htmx:response:error", ({ detail }) => { if (detail.ctx.response.status === 401) location.reload(); });
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", settle) : settle();
})();
