// Clouds to turn, on a Canvas 2D each: far points first, no WebGL. Mouse, touch and keys; double click resets.
"use strict";
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const START = {yaw: -0.611, pitch: 0.384, zoom: 1};  // the view of all our pictures
function viewer(canvas) {
  const xyz = new Int16Array(bytes(canvas.dataset.xyz).buffer), rgb = bytes(canvas.dataset.rgb);
  const size = bytes(canvas.dataset.size), count = size.length, brush = canvas.getContext("2d");
  const color = Array.from(size, (_, i) => `rgb(${rgb[3*i]} ${rgb[3*i+1]} ${rgb[3*i+2]})`);
  const order = [...Array(count).keys()], X = new Float32Array(count), Y = new Float32Array(count), Z = new Float32Array(count);
  let {yaw, pitch, zoom} = START, waiting = false;
  function draw() {
    waiting = false;
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth * ratio;
    if (!width) return;
    canvas.width = canvas.height = width;  // also clears it
    const scale = width * 0.44 * zoom, dot = Math.max(1.2, 0.22 * canvas.clientWidth / Math.sqrt(count)) * ratio * Math.sqrt(zoom);
    const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch);
    for (let i = 0; i < count; i++) {
      const x = xyz[3*i] / 32767, y = xyz[3*i+1] / 32767, z = xyz[3*i+2] / 32767;
      const across = cy*x + sy*z, depth = cy*z - sy*x, near = sp*y + cp*depth, lens = 4 / (4 - near);
      X[i] = width/2 + across*scale*lens; Y[i] = width/2 - (cp*y - sp*depth)*scale*lens; Z[i] = near;
    }
    order.sort((a, b) => Z[a] - Z[b]);
    for (const i of order) {
      brush.fillStyle = color[i];
      brush.beginPath(); brush.arc(X[i], Y[i], dot * size[i]/16 * (1 + 0.25*Z[i]), 0, 7); brush.fill();
    }
  }
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const turn = (right, up) => { yaw += right; pitch = Math.max(-1.57, Math.min(1.57, pitch + up)); redraw(); };
  const magnify = by => { zoom = Math.max(0.4, Math.min(8, zoom * by)); redraw(); };
  let last = null;
  canvas.onpointerdown = event => { last = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); };
  canvas.onpointermove = event => {
    if (!last) return;
    turn((event.clientX - last[0]) * -0.01, (event.clientY - last[1]) * 0.01);
    last = [event.clientX, event.clientY];
  };
  canvas.onpointerup = canvas.onpointercancel = () => { last = null; };
  canvas.ondblclick = () => { ({yaw, pitch, zoom} = START); redraw(); };
  canvas.addEventListener("wheel", event => {  // with Ctrl alone: else the page scrolls
    if (event.ctrlKey) { event.preventDefault(); magnify(Math.exp(-event.deltaY * 0.002)); }
  }, {passive: false});
  canvas.onkeydown = event => {
    const step = {ArrowLeft: [0.15, 0], ArrowRight: [-0.15, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15]}[event.key];
    if (step) turn(...step); else if (event.key === "+") magnify(1.2); else if (event.key === "-") magnify(1/1.2); else return;
    event.preventDefault();
  };
  new ResizeObserver(redraw).observe(canvas);
}
document.querySelectorAll("canvas[data-xyz]").forEach(viewer);
