// Streams one chat through the official openai package and prints what arrived as one JSON line.
// usage: node stream_chat.mjs BASE_URL MODEL PROMPT
import OpenAI from "openai";

const [baseURL, model, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });

const stream = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: prompt }],
  temperature: 0,
  max_tokens: 32,
  stream: true,
  stream_options: { include_usage: true },
});

let text = "";
let chunks = 0;
let finishReason = null;
let usage = null;
for await (const chunk of stream) {
  chunks += 1;
  text += chunk.choices[0]?.delta?.content ?? "";
  finishReason = chunk.choices[0]?.finish_reason ?? finishReason;
  usage = chunk.usage ?? usage;
}
console.log(JSON.stringify({ text, chunks, finishReason, usage }));
