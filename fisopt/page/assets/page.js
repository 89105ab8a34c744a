const data = JSON.parse(document.getElementById("data").textContent);
const views = {};
const at = (id) => document.getElementById(id);

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

/* Charts: one view each. */

async function draw() {
  for (const [name, spec] of Object.entries(data.charts)) {
    const made = await vegaEmbed(at(`chart-${name}`), spec, { actions: false, renderer: "svg" });
    views[name] = made.view;
  }
}

/* A chart of what it has nothing of is hidden: its axes would have no ends. */
function tell(names, signal, value) {
  for (const name of names.filter((name) => views[name])) {
    const some = data.charts[name].data.values.some((row) => row[signal] === value);
    at(`chart-${name}`).classList.toggle("empty", !some);
    if (some) views[name].signal(signal, value).runAsync();
  }
}

function chooseConfiguration() {
  const select = at("configuration");
  if (!select) return;
  const shown = Object.keys(data.charts).filter((n) => n.startsWith("choices-") || n === "stages");
  const known = shown.map((n) => [...new Set(data.charts[n].data.values.map((v) => v.configuration))]);
  const names = [...new Set(known.flat())];
  const charts = (name) => known.filter((some) => some.includes(name)).length;
  fill(select, names, names.reduce((best, name) => (charts(name) > charts(best) ? name : best)));
  const told = () => tell(shown, "configuration", select.value);
  select.addEventListener("change", told);
  told();
  for (const radio of document.querySelectorAll("input[name=choices]")) {
    radio.addEventListener("change", () => {
      for (const other of document.querySelectorAll("input[name=choices]")) {
        at(`chart-choices-${other.value}`).hidden = !other.checked;
      }
    });
  }
}

/* Clips: three screens, one clock. */

const pictures = new Map();

function picture(sheet) {
  if (!pictures.has(sheet.url)) {
    const image = new Image();
    image.src = sheet.url;
    pictures.set(sheet.url, image.decode().then(() => image));
  }
  return pictures.get(sheet.url);
}

async function paint(context, sheet, place, part = 1) {
  const image = await picture(sheet);
  const index = Math.round(place * (sheet.frames - 1));
  const x = (index % sheet.columns) * sheet.width;
  const y = Math.floor(index / sheet.columns) * sheet.height;
  const cut = Math.round(part * sheet.width);
  if (cut) context.drawImage(image, x, y, cut, sheet.height, 0, 0, cut, sheet.height);
}

function difference(context, one, two, gain) {
  const { width, height } = context.canvas;
  const a = one.getImageData(0, 0, width, height);
  const b = two.getImageData(0, 0, width, height).data;
  for (let i = 0; i < b.length; i += 4) {
    for (let c = i; c < i + 3; c += 1) a.data[c] = gain * Math.abs(a.data[c] - b[c]);
  }
  context.putImageData(a, 0, 0);
}

class Player {
  constructor(films) {
    this.films = films;
    this.screens = ["left", "right", "third"].map((name) =>
      at(`screen-${name}`).getContext("2d", { willReadFrequently: true }));
    this.timer = null;
    this.turn = Promise.resolve();
    fill(at("prompt"), [...new Set(films.map((film) => film.prompt))]);
    at("prompt").addEventListener("change", () => this.choose());
    for (const id of ["left", "right", "view", "gain"]) at(id).addEventListener("input", () => this.show());
    at("frame").addEventListener("input", () => this.show());
    at("play").addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    at("rate").addEventListener("change", () => { if (this.timer) { this.stop(); this.play(); } });
    at("player").hidden = false;
    this.choose();
  }

  choose() {
    this.mine = this.films.filter((film) => film.prompt === at("prompt").value);
    const names = this.mine.map((film) => film.configuration);
    const dense = (this.mine.find((film) => film.dense) || this.mine[0]).configuration;
    const others = names.filter((name) => name !== dense);
    const kept = (id, other) => (names.includes(at(id).value) ? at(id).value : other);
    fill(at("left"), names, kept("left", dense));
    fill(at("right"), names, kept("right", others[0] || dense));
    at("frame").max = Math.max(...this.mine.map((film) => film.sheet.frames)) - 1;
    at("frame").value = Math.min(at("frame").value, at("frame").max);
    tell(["frames"], "prompt", at("prompt").value);
    this.show();
  }

  film(id) {
    return this.mine.find((film) => film.configuration === at(id).value);
  }

  show() {
    this.turn = this.turn.then(() => this.paint());
    return this.turn;
  }

  async paint() {
    const [one, two] = [this.film("left"), this.film("right")];
    const last = Number(at("frame").max);
    const place = last ? Number(at("frame").value) / last : 0;
    for (const { canvas } of this.screens) {
      if (canvas.width !== one.sheet.width || canvas.height !== one.sheet.height) {
        canvas.width = one.sheet.width;
        canvas.height = one.sheet.height;
      }
    }
    const [left, right, third] = this.screens;
    await paint(left, one.sheet, place);
    await paint(right, two.sheet, place);
    await this.third(third, one, two, place);
    at("said-left").textContent = [one.configuration, one.note].filter(Boolean).join(": ");
    at("said-right").textContent = [two.configuration, two.note].filter(Boolean).join(": ");
    at("place").textContent = `${Number(at("frame").value) + 1} of ${last + 1}`;
  }

  async third(context, one, two, place) {
    const view = at("view").value;
    const { width, height } = context.canvas;
    if (view === "flip" && two.flip) {
      await paint(context, two.flip, place);
      at("said-third").textContent = `FLIP of ${two.configuration} against the dense clip`;
    } else if (view === "flip") {
      context.clearRect(0, 0, width, height);
      at("said-third").textContent = `no FLIP map of ${two.configuration}`;
    } else if (view === "wipe") {
      await paint(context, two.sheet, place);
      await paint(context, one.sheet, place, 0.5);
      at("said-third").textContent = `${one.configuration} | ${two.configuration}`;
    } else {
      difference(context, this.screens[0], this.screens[1], Number(at("gain").value));
      at("said-third").textContent = `difference, ${at("gain").value} times`;
    }
  }

  play() {
    at("play").textContent = "stop";
    this.timer = setInterval(() => {
      at("frame").value = (Number(at("frame").value) + 1) % (Number(at("frame").max) + 1);
      this.show();
    }, 1000 / Math.max(1, Number(at("rate").value)));
  }

  stop() {
    at("play").textContent = "play";
    clearInterval(this.timer);
    this.timer = null;
  }
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const text = at(button.dataset.copies).textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      getSelection().selectAllChildren(at(button.dataset.copies));
      document.execCommand("copy");
    }
    button.textContent = "copied";
  });
}

for (const figure of document.querySelectorAll(".graphs figure")) {
  figure.scrollLeft = (figure.scrollWidth - figure.clientWidth) / 2;
}

draw().then(async () => {
  chooseConfiguration();
  if (data.films.length) await new Player(data.films).turn;
  document.body.dataset.ready = "yes";
});
