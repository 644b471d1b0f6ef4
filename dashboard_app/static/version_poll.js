// Asks every two seconds for the version of what the page shows, and has its body drawn again when the version differs.
// Shows how old the data are, and keeps times counting. Texts are set as text, never as HTML. A hidden tab asks nothing.
const EVERY = 2000;
const WORTH = 15; // seconds of lag from which the age is shown
const PATIENCE = 3 * EVERY; // ms after which a redraw request without effect is sent again
const SOON = 700; // ms after which a part tries again that had to wait for another part

const words = (seconds) => {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const [size, unit, smaller, word] = s < 3600 ? [60, "min", 1, "s"] : s < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  const rest = Math.floor((s % size) / smaller);
  return `${Math.floor(s / size)} ${unit}` + (rest ? ` ${rest} ${word}` : "");
};
const write = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};
const each = (name, action) => document.querySelectorAll(`[data-${name}]`).forEach((e) => action(e, e.dataset[name]));

// Between a click on a link and the new page, Streamlit takes a trigger as a request to stay on the old page, or shows an
// empty page. So no trigger is sent while Streamlit is busy; if the page breaks nevertheless, it is loaded again.
// Two parts of a page are drawn one after the other, because Streamlit drops one of two simultaneous triggers, or leaves
// old elements. The part that has to wait tries again soon; at its next regular poll, in a study that changes all the
// time, the other part would always be first. No trigger is sent while somebody has a list open or holds a control,
// because a redraw would close the list or move the slider.
if (window.hopaasClicked === undefined) {
  window.hopaasClicked = window.hopaasAsked = -Infinity;
  window.hopaasHeld = false;
  document.addEventListener("click", () => (window.hopaasClicked = performance.now()), true);
  document.addEventListener("pointerdown", () => (window.hopaasHeld = true), true);
  for (const end of ["pointerup", "pointercancel"])
    document.addEventListener(end, () => (window.hopaasHeld = false), true);
  window.addEventListener("blur", () => (window.hopaasHeld = false));
  window.addEventListener("error", (event) => {
    if (/Bad delta path/.test(event.message)) location.reload();
  });
}
const choosing = () => window.hopaasHeld || document.querySelector("[role=listbox]");
const busy = () => {
  const state = document.querySelector("[data-testid=stApp]")?.dataset.testScriptState;
  const since = performance.now() - Math.max(window.hopaasClicked, window.hopaasAsked);
  return (state && state !== "notRunning") || since < 500;
};

function start(parent) {
  const line = document.createElement("div");
  line.className = "hp-asof";
  line.append(document.createElement("span"), document.createElement("button"));
  const [text, button] = line.children;
  button.textContent = "Show what is new";
  button.hidden = true;
  parent.appendChild(line);
  const self = { data: null, trigger: null };
  let beat = null, came = 0, lost = null, asked = null, askedAt = 0, stopped = false, again = 0;

  const show = () => {
    text.hidden = !self.data.age;
    if (!beat) return write(text, lost || "Reading the store…");
    const passed = (performance.now() - came) / 1000;
    const trouble = lost || beat.trouble;
    const lag = beat.lag === null ? null : beat.lag + passed;
    const at = lag === null ? "" : new Date(Date.now() - lag * 1000).toLocaleTimeString();
    const old = lag > WORTH ? `, ${words(lag)} old` : "";
    const known = lag === null ? "Not read yet" : `Data as of ${at}${old}`;
    write(text, known + (trouble ? ` · ${trouble}` : ""));
    line.classList.toggle("hp-trouble", Boolean(trouble));
    const now = beat.now + passed;
    each("since", (e, at) => write(e, now - at < 2 ? "just now" : `${words(now - at)} ago`));
    each("for", (e, at) => write(e, words(now - at)));
    each("lease", (e, name) => {
      const left = beat.leases?.[name];
      if (left === undefined) return;
      if (e.dataset.ttl) return write(e, `${words(e.dataset.ttl - left + passed)} ago`);
      write(e, left > passed ? `${words(left - passed)} left` : "may be taken over");
    });
  };
  const redraw = () => {
    asked = beat.version;
    askedAt = window.hopaasAsked = performance.now();
    button.hidden = true;
    self.trigger("moved", beat.version);
  };
  button.onclick = redraw;
  const look = async () => {
    if (document.hidden || stopped) return;
    try {
      const reply = await fetch(self.data.ask, { cache: "no-store", credentials: "same-origin" });
      lost = reply.ok ? null : "This page has expired. Reload it.";
      if (reply.ok) {
        beat = await reply.json();
        came = performance.now();
      }
    } catch {
      lost = "The monitor does not answer.";
    }
    if (stopped || !line.isConnected) return;
    show();
    const moved = beat && self.data.drawn !== beat.version;
    const wish = asked !== beat?.version || performance.now() - askedAt > PATIENCE;
    if (!self.data.auto) button.hidden = !moved;
    else if (moved && wish && !choosing()) {
      if (!busy()) return redraw();
      clearTimeout(again);
      again = setTimeout(look, SOON);
    }
  };
  const looking = setInterval(look, EVERY);
  const showing = setInterval(show, 1000);
  document.addEventListener("visibilitychange", look);
  self.look = look;
  self.stop = () => {
    stopped = true;
    clearInterval(looking);
    clearInterval(showing);
    clearTimeout(again);
    document.removeEventListener("visibilitychange", look);
    line.remove();
  };
  return self;
}

const running = new WeakMap();

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const first = !running.has(parentElement);
  if (first) running.set(parentElement, start(parentElement));
  const self = running.get(parentElement);
  self.data = data;
  self.trigger = setTriggerValue;
  if (first) self.look();
  return () => {
    self.stop();
    running.delete(parentElement);
  };
}
