// Express, the way a developer writes it: JSON in, one res.write() a word, setTimeout() between the words.
//
// Each timer is set to the word's due time, so that late timers do not slow the stream.
const { randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const express = require("express");

const [port, periodMs, replyFile] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]];
const text = readFileSync(replyFile, "utf8");
// Each with the white space before it, which is an event of its own.
const words = text.match(/\s*\S+/g).map((word) => word.match(/\s+|\S+/g));

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
  const event = (data) => `data: ${JSON.stringify(data)}\n\n`;
  const start = performance.now();
  let next = 0;
  let timer;

  const wait = () => {
    timer = setTimeout(say, start + (next + 1) * periodMs - performance.now());
  };
  const say = () => {
    if (res.destroyed) return;
    res.write(words[next].map((token) => event({ token, done: false })).join(""));
    if (++next < words.length) return wait();
    res.end(event({ token: "", done: true, fullText: text, chat_id: randomUUID(), message_id: randomUUID() }));
  };
  res.on("close", () => clearTimeout(timer));
  wait();
});

app.listen(port, "127.0.0.1", 2048);
