// Beside the pointer, the image of the point under it. SPRITE holds all images, COLUMNS in a row, each WIDTH x HEIGHT.
const plot = document.getElementById("{plot_id}");
const card = document.createElement("div"), zoom = 96 / HEIGHT;
Object.assign(card.style, {
  position: "fixed", display: "none", zIndex: 1000, pointerEvents: "none", border: "1px solid #5f6368",
  width: WIDTH * zoom + "px", height: HEIGHT * zoom + "px", imageRendering: "pixelated",
  backgroundImage: "url(SPRITE)", backgroundSize: COLUMNS * WIDTH * zoom + "px auto",
});
document.body.append(card);
plot.on("plotly_hover", ({points: [point], event}) => {
  const n = point.customdata[0], column = n % COLUMNS, row = Math.floor(n / COLUMNS);
  card.style.backgroundPosition = `${-column * WIDTH * zoom}px ${-row * HEIGHT * zoom}px`;
  card.style.left = event.clientX + 16 + "px";
  card.style.top = event.clientY + 16 + "px";
  card.style.display = "block";
});
plot.on("plotly_unhover", () => { card.style.display = "none"; });
