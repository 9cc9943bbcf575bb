// Express, the way a developer writes it: JSON in, one res.write() a word, setTimeout() between the words.
//
// Each timer is set to the word's due time, so that late timers do not slow the stream.
const { randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const express = require("express");

const [port, periodMs, replyFile] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]];
const text = readFileSync(replyFile, "utf8").trim();

const app = express();
app.use(express.json());

app.post("/chat/stream", (req, res) => {
  if (typeof req.body?.message !== "string") return res.status(400).json({ error: "Bad message" });
  res.set({
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    Connection: "keep-alive",
    "X-Accel-Buffering": "no",
  });
  res.flushHeaders();
  const words = text.split(" ");
  const event = (data) => `data: ${JSON.stringify(data)}\n\n`;
  const start = performance.now();
  let next = 0;
  let timer;

  const wait = () => {
    if (periodMs) timer = setTimeout(say, start + (next + 1) * periodMs - performance.now());
    // One send a word: the words of one turn of the loop would be sent together.
    else setImmediate(say);
  };
  const say = () => {
    if (res.destroyed) return;
    const blank = next ? event({ token: " ", done: false }) : "";
    res.write(blank + event({ token: words[next], done: false }));
    if (++next < words.length) return wait();
    res.end(event({ token: "", done: true, fullText: text, chat_id: randomUUID(), message_id: randomUUID() }));
  };
  res.on("close", () => clearTimeout(timer));
  wait();
});

app.listen(port, "127.0.0.1", 2048);
