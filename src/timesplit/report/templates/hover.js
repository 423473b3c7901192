// Reads a plot at the pointer. Without it the plots are as complete, only not to be asked.
for (const panel of document.querySelectorAll("figure[data-readings]")) {
  const readings = JSON.parse(panel.dataset.readings);
  const svg = panel.querySelector("svg");
  const hair = panel.querySelector(".hair");
  const output = panel.querySelector("output");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const near = readings.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    hair.setAttribute("transform", `translate(${near[0]})`);
    hair.style.visibility = "visible";
    output.textContent = near[1];
  });
  svg.addEventListener("pointerleave", () => {
    hair.style.visibility = "hidden";
    output.textContent = "";
  });
}
