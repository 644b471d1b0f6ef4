// Shows how old the data is, second by second, and asks for the page's body when the log has moved past what is drawn.
// Counts leases down in elements with data-lease. Texts are set as text, never as HTML.
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const since = performance.now();
  let line = parentElement.querySelector(".hp-asof");
  if (!line) {
    line = document.createElement("div");
    line.className = "hp-asof";
    parentElement.appendChild(line);
  }
  const show = () => {
    const passed = (performance.now() - since) / 1000;
    if (data.lag === null) {
      line.textContent = data.trouble || "Reading the store…";
    } else {
      const lag = data.lag + passed;
      const at = new Date(Date.now() - lag * 1000).toLocaleTimeString();
      const words = lag < 90 ? `${Math.round(lag)} s` : `${Math.round(lag / 60)} min`;
      line.textContent = `data as of ${at} (lag ${words})` + (data.trouble ? ` · ${data.trouble}` : "");
    }
    line.classList.toggle("hp-trouble", Boolean(data.trouble));
    for (const [number, left] of Object.entries(data.leases || {})) {
      const now = left - passed;
      const words = now > 0 ? `${Math.ceil(now)} s left` : "may be taken over";
      for (const place of document.querySelectorAll(`[data-lease="${CSS.escape(number)}"]`)) {
        if (place.textContent !== words) place.textContent = words;
      }
    }
  };
  show();
  const timer = setInterval(show, 1000);
  if (data.moved && parentElement.dataset.asked !== String(data.lsn)) {
    parentElement.dataset.asked = String(data.lsn);
    setTriggerValue("moved", data.lsn);
  }
  return () => clearInterval(timer);
}
