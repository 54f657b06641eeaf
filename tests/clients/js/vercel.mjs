// The Vercel AI SDK, with both of its providers for this API. Usage: node vercel.mjs BASE_URL
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [baseURL] = process.argv.slice(2);
const openai = createOpenAI({ baseURL, apiKey: "sk-test" });
const compatible = createOpenAICompatible({ name: "pelton", baseURL, apiKey: "sk-test", supportsStructuredOutputs: true, includeUsage: true });
const said = "user\nhello";
const models = { responses: openai("echo"), chat: openai.chat("echo"), compatible: compatible("echo") };
const hello = { prompt: "hello", temperature: 0, maxRetries: 0 };

for (const [name, model] of Object.entries(models)) {
  const told = await generateText({ model, ...hello });
  assert.equal(told.text, said);
  assert.equal(told.finishReason, "stop");
  assert.equal(told.usage.outputTokens, 12);
  console.log(`ok ${name} text`);

  const stream = streamText({ model, ...hello });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, said);
  assert.equal((await stream.usage).outputTokens, 12);
  console.log(`ok ${name} stream`);

  const form = z.object({ city: z.literal("Oslo"), number: z.literal(7) });
  const object = await generateText({ model, ...hello, output: Output.object({ schema: form }) });
  assert.deepEqual(object.output, { city: "Oslo", number: 7 });
  console.log(`ok ${name} object`);

  const asked = [];
  const weather = tool({
    description: "The weather.",
    inputSchema: z.object({ city: z.literal("Oslo") }).strict(),
    execute: async (input) => { asked.push(input); return "rain"; },
  });
  const options = { model, ...hello, tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(2) };
  const called = await generateText(options);
  assert.equal(called.steps.length, 2); // the second conversation holds the first's call and its result
  assert.equal(called.steps[0].finishReason, "tool-calls");
  assert.ok(asked.every((input) => input.city === "Oslo"));
  const streamed = streamText(options);
  await streamed.consumeStream();
  assert.equal((await streamed.steps).length, 2);
  console.log(`ok ${name} tools`);
}
const thinker = { model: compatible("thinker"), prompt: "<think>Hm.</think>Yes.", temperature: 0, maxRetries: 0 };
const thought = await generateText(thinker);
assert.deepEqual([thought.reasoningText, thought.text], ["Hm.", "Yes."]);
const streamedThought = streamText(thinker);
assert.equal(await streamedThought.text, "Yes.");
assert.equal(await streamedThought.reasoningText, "Hm.");
console.log("ok thoughts");
const { embeddings } = await embedMany({ model: openai.embedding("vectors"), values: ["hello", "a"], maxRetries: 0 });
assert.deepEqual(embeddings, [[5, 532, 104, 111], [1, 97, 97, 97]]);
console.log("ok embeddings");
