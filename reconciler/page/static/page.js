// The page's own script: the theme, what refreshes by itself, live lines, and the small chat. Everything else works
// without it. Text from elsewhere gets into the document as text only.
"use strict";

(() => {
  const THEMES = ["system", "light", "dark"];
  const MOST_LINES = 1000;
  const FAST = 1000, EACH = 5000, SETTLE = 250, AGAIN = 5000;

  // --- the theme, before anything is drawn ---
  let theme = "system";
  try { theme = localStorage.getItem("theme") || theme; } catch { /* storage is off: the system's theme stays */ }
  const show = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  if (!THEMES.includes(theme)) theme = "system";
  show();

  const make = (tag, css, text) => {
    const element = document.createElement(tag);
    if (css) element.className = css;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const tell = (text, bad) => {
    const message = make("p", bad ? "notice bad" : "notice", text);
    document.getElementById("notice").replaceChildren(message);
  };

  // --- what refreshes by itself ---
  const refresh = (selector) => {
    if (!window.htmx || document.hidden) return;
    for (const element of document.querySelectorAll(selector)) window.htmx.trigger(element, "changed");
  };
  const touched = new Set();
  let settling = 0;
  const touch = (model) => {
    touched.add(model);
    settling ||= setTimeout(() => {
      settling = 0;
      const rows = [...document.querySelectorAll("[data-model]")];
      const known = [...touched].every((name) => name && rows.some((row) => row.dataset.model === name));
      if (!known) refresh('[data-live="all"]');
      else for (const row of rows) if (touched.has(row.dataset.model)) window.htmx?.trigger(row, "changed");
      touched.clear();
    }, SETTLE);
  };

  // What somebody is filling in, or is about to confirm, stays as they read it.
  const inUse = (part) => part.querySelector("details.confirm[open]") !== null
    || [...part.querySelectorAll("input, select")].some((field) => field === document.activeElement
      || field.value !== (field.defaultValue ?? field.options[0].value));

  const last = new WeakMap();
  let opened = [];
  const prepare = (body) => {
    body.addEventListener("told", (event) => tell(event.detail.text, event.detail.bad));
    body.addEventListener("htmx:beforeSwap", (event) => {
      const { xhr, target } = event.detail;
      // A part that is as it was stays, with what is selected or open in it.
      if (last.get(target) === xhr.responseText || (target.dataset.live && inUse(target))) event.detail.shouldSwap = false;
      opened = [...target.querySelectorAll("details[open]")].map((details) => details.id).filter(Boolean);
    });
    body.addEventListener("htmx:afterSwap", (event) => {
      const now = document.getElementById(event.detail.target.id);
      if (now) last.set(now, event.detail.xhr.responseText);
      for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
      opened = [];
    });
    body.addEventListener("htmx:responseError", (event) => {
      let why = `The server answered ${event.detail.xhr.status}.`;
      try { why = JSON.parse(event.detail.xhr.responseText).error || why; } catch { /* no JSON: the status has to do */ }
      tell(why, true);
    });
    body.addEventListener("htmx:sendError", (event) => {
      if (!event.detail.elt.dataset.live) tell("The reconciler does not answer. Nothing was done; try again shortly.", true);
    });
    setInterval(() => refresh('[data-live="fast"]'), FAST);
    setInterval(() => refresh('[data-live="all"]'), EACH);
    setInterval(() => refresh('[data-live="slow"]'), 3 * EACH);
  };

  // --- what comes by itself ---
  let stream = null, lastId = "", paused = false, again = 0;
  const add = (list, item) => {
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    list.append(item);
    while (list.children.length > MOST_LINES) list.firstElementChild.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
  };
  const clock = (at) => {
    const moment = new Date(at);
    return Number.isNaN(moment.getTime()) ? "" : moment.toISOString().slice(11, 19);
  };
  const happened = (event) => {
    lastId = event.lastEventId;
    const said = JSON.parse(event.data);
    touch(said.model);
    const list = document.getElementById("events");
    if (!list) return;
    const item = make("div", said.level);
    item.append(make("time", "", clock(said.at)), " ", make("strong", "", said.event), " ");
    if (said.model) item.append(make("bdi", "who", said.model), " ");
    item.append(make("bdi", "text", said.text));
    add(list, item);
    document.getElementById("events-empty").hidden = true;
  };
  const line = (event) => {
    const list = document.querySelector("[data-logs]");
    if (paused || !list) return;
    const said = JSON.parse(event.data);
    const item = make("div", said.level);
    if (said.at) item.append(make("time", "", clock(said.at * 1000)), " ");
    item.append(make("span", "origin", said.origin), " ");
    if (said.model) item.append(make("bdi", "who", said.model), " ");
    item.append(make("bdi", "text", said.text));
    add(list, item);
  };
  const mark = (live) => {
    const sign = document.getElementById("live");
    const text = live ? "● live" : "○ reconnecting";
    if (sign.textContent === text) return;
    sign.hidden = false;
    sign.className = live ? "live" : "live off";
    sign.textContent = text;
  };
  const listen = () => {
    if (stream || document.hidden) return;
    const logs = document.querySelector("[data-log-model]");
    const query = new URLSearchParams();
    if (lastId) query.set("after", lastId);
    if (logs) {
      query.set("logs", "1");
      if (logs.dataset.logModel) query.set("model", logs.dataset.logModel);
    }
    stream = new EventSource(`/live?${query}`);
    stream.addEventListener("open", () => {
      if (document.getElementById("live").classList.contains("off")) refresh("[data-live]");
      mark(true);
    });
    stream.addEventListener("happened", happened);
    stream.addEventListener("line", line);
    stream.addEventListener("refused", (event) => tell(JSON.parse(event.data).text, true));
    stream.addEventListener("ended", () => { location.reload(); });
    stream.addEventListener("error", () => {
      mark(false);
      // An answer that is no stream closes it for good; so it is begun anew.
      if (stream.readyState === EventSource.CLOSED) { deaf(); again ||= setTimeout(() => { again = 0; listen(); }, AGAIN); }
    });
  };
  const deaf = () => { stream?.close(); stream = null; };

  // --- the chat ---
  const chat = (form) => {
    const talk = document.getElementById("talk"), stop = document.getElementById("stop");
    const send = document.getElementById("send"), forget = document.getElementById("forget");
    let before = [], going = null;
    const say = (who, css, text) => {
      const said = make("div", `said ${css}`), words = make("p", "", text);
      said.append(make("span", "label", who), words);
      talk.append(said);
      talk.scrollTop = talk.scrollHeight;
      return words;
    };
    const pieces = async function* (answer) {
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const each of lines) if (each) yield JSON.parse(each);
      }
    };
    const ask = async () => {
      const data = new URLSearchParams(new FormData(form));
      const message = data.get("message").trim();
      if (!message || going) return;
      data.set("before", JSON.stringify(before));
      say("You", "user", message);
      const words = say("Model", "assistant", "…");
      form.elements.message.value = "";
      going = new AbortController();
      send.disabled = true; stop.hidden = false; talk.setAttribute("aria-busy", "true");
      let text = "", failed = "";
      try {
        const options = { method: "POST", body: data, headers: { Accept: "application/x-ndjson" }, signal: going.signal };
        const answer = await fetch("/chat", options);
        if (!answer.ok) failed = (await answer.json()).error;
        else for await (const each of pieces(answer)) {
          if (each.error) failed = each.error;
          if (each.piece) { text += each.piece; words.textContent = text; talk.scrollTop = talk.scrollHeight; }
        }
      } catch (error) {
        failed = error.name === "AbortError" ? "stopped" : "The answer broke off. Is the reconciler up?";
      }
      if (failed) { words.parentElement.classList.add("failed"); words.textContent = text ? `${text}\n[${failed}]` : failed; }
      else { if (!text) words.textContent = "(it said nothing)"; before.push({ role: "user", content: message }, { role: "assistant", content: text }); }
      before = before.slice(-40);
      going = null;
      send.disabled = false; stop.hidden = true; forget.hidden = false; talk.removeAttribute("aria-busy");
      form.elements.message.focus();
    };
    form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
    form.elements.message.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
    });
    stop.addEventListener("click", () => going?.abort());
    forget.addEventListener("click", () => { before = []; talk.replaceChildren(); forget.hidden = true; });
  };

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => { button.textContent = `Theme: ${theme}`; };
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      try { localStorage.setItem("theme", theme); } catch { /* storage is off: it holds for this page */ }
      show();
      name();
    });
    if (!document.getElementById("live")) return;
    prepare(document.body);
    for (const list of document.querySelectorAll("[data-logs]")) list.scrollTop = list.scrollHeight;
    const pause = document.getElementById("pause");
    if (pause) {
      pause.hidden = false;
      pause.addEventListener("click", () => {
        paused = !paused;
        pause.setAttribute("aria-pressed", String(paused));
      });
    }
    const form = document.getElementById("chat");
    if (form) chat(form);
    listen();
    // A tab that nobody sees holds no connection: a browser has six for a host.
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) deaf();
      else { listen(); refresh("[data-live]"); }
    });
  });
})();
