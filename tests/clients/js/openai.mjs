// The OpenAI client for JavaScript. Usage: node openai.mjs BASE_URL SOUND
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, sound] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-test", maxRetries: 0 });
const hello = { model: "echo", messages: [{ role: "user", content: "hello" }], temperature: 0 };
const said = "user\nhello";
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters, strict: true } }];
const checks = {
  async chat() {
    const told = await client.chat.completions.create(hello);
    assert.equal(told.choices[0].message.content, said);
    assert.equal(told.usage.completion_tokens, 12);
  },
  async stream() {
    let text = "";
    let usage;
    const stream = await client.chat.completions.create({
      ...hello, stream: true, stream_options: { include_usage: true },
    });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, said);
    assert.equal(usage.completion_tokens, 12);
    const runner = client.chat.completions.stream(hello);
    assert.equal(await runner.finalContent(), said);
  },
  async leaving() {
    for (let i = 0; i < 3; i++) {
      const stream = await client.chat.completions.create({ ...hello, max_tokens: 4000, ignore_eos: true, stream: true });
      for await (const _ of stream) break;
    }
    assert.ok(await client.chat.completions.create({ ...hello, max_tokens: 1 }));
  },
  async parse() {
    const form = z.object({ city: z.literal("Oslo"), number: z.literal(7) });
    const told = await client.chat.completions.parse({ ...hello, response_format: zodResponseFormat(form, "answer") });
    assert.deepEqual(told.choices[0].message.parsed, { city: "Oslo", number: 7 });
  },
  async tools() {
    const asked = { ...hello, tools, tool_choice: "required", parallel_tool_calls: false };
    const told = await client.chat.completions.create(asked);
    assert.equal(told.choices[0].finish_reason, "tool_calls");
    assert.deepEqual(JSON.parse(told.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });
    const final = await client.chat.completions.stream(asked).finalChatCompletion();
    assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });
  },
  async completions() {
    const told = await client.completions.create({ model: "echo", prompt: "ab", max_tokens: 4, temperature: 0 });
    assert.equal(told.choices[0].text, "abab");
  },
  async embeddings() {
    const told = await client.embeddings.create({ model: "vectors", input: ["hello", "a"] });
    assert.deepEqual(told.data[0].embedding, [5, 532, 104, 111]);
  },
  async responses() {
    const told = await client.responses.create({ model: "echo", input: "hello", temperature: 0 });
    assert.equal(told.output_text, said);
    const more = await client.responses.create({ model: "echo", input: "x", previous_response_id: told.id });
    assert.equal(more.previous_response_id, told.id);
    const final = await client.responses.stream({ model: "echo", input: "hello", temperature: 0 }).finalResponse();
    assert.equal(final.output_text, said);
  },
  async transcriptions() {
    const told = await client.audio.transcriptions.create({ model: "ears", file: fs.createReadStream(sound) });
    assert.equal(told.text, "hello transcribe en");
  },
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.deepEqual(names, ["ears", "echo", "thinker", "vectors"]);
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ ...hello, temperature: 3 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "temperature");
      return true;
    });
    await assert.rejects(client.models.retrieve("nothing"), OpenAI.NotFoundError);
  },
};
for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`ok ${name}`);
}
