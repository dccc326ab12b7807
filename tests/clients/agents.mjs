// The clients of agents.py for Node. usage: node agents.mjs BASE_URL SCHEMA

import Anthropic from '@anthropic-ai/sdk';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, jsonSchema, stepCountIs, tool } from 'ai';
import OpenAI from 'openai';

const [, , base, schema] = process.argv;
const parameters = JSON.parse(schema);
const question = 'Is it warm?';
const messages = [{ role: 'user', content: question }];
const options = { apiKey: 'none', maxRetries: 0 };
const openai = new OpenAI({ baseURL: `${base}/v1`, ...options });
const anthropic = new Anthropic({ baseURL: base, ...options });
const vercel = createOpenAICompatible({
  name: 'forebay', baseURL: `${base}/v1`, apiKey: 'none', supportsStructuredOutputs: true,
});

function report(name, truth) {
  console.log(`${truth ? 'ok  ' : 'FAIL'} ${name}`);
  if (!truth) process.exitCode = 1;
}

const typed = (value) => typeof value.city === 'string' && Number.isInteger(value.degrees);

const runner = openai.chat.completions.runTools({
  model: 'sim',
  messages,
  tools: [{
    type: 'function',
    function: {
      name: 'weather', parameters, parse: JSON.parse,
      function: (weather) => (typed(weather) ? '31 C' : 'invalid'),
    },
  }],
});
const results = (await runner.finalContent()) && runner.messages.filter((m) => m.role === 'tool');
report('openai-node: tools run to an answer', results.length === 1 && results[0].content === '31 C');

const asked = { model: 'sim', max_tokens: 100, messages, tools: [{ name: 'weather', input_schema: parameters }] };
const message = await anthropic.messages.stream(asked).finalMessage();
report('anthropic-node: a streamed call', typed(message.content[0].input));

const model = vercel('sim');
const { object } = await generateObject({ model, prompt: question, schema: jsonSchema(parameters) });
report('Vercel AI SDK: a typed answer', typed(object));
const calls = [];
const { text } = await generateText({
  model,
  prompt: question,
  stopWhen: stepCountIs(5),
  tools: {
    weather: tool({
      inputSchema: jsonSchema(parameters),
      execute: async (weather) => { calls.push(weather); return '31 C'; },
    }),
  },
});
report('Vercel AI SDK: tools run to an answer', text.length > 0 && calls.length === 1 && typed(calls[0]));
