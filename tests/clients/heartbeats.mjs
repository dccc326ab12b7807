// The clients of heartbeats.py for Node. usage: node heartbeats.mjs BASE_URL

import Anthropic from '@anthropic-ai/sdk';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText } from 'ai';
import OpenAI from 'openai';

const base = process.argv[2];
const messages = [{ role: 'user', content: 'hello' }];
const options = { apiKey: 'none', maxRetries: 0 };
const openai = new OpenAI({ baseURL: `${base}/v1`, ...options });
const anthropic = new Anthropic({ baseURL: base, ...options });
const vercel = createOpenAICompatible({ name: 'forebay', baseURL: `${base}/v1`, apiKey: 'none' });

// Each returns the text of the answer.
const clients = {
  'openai-node chat': async (model) => {
    const answer = await openai.chat.completions.create({ model, messages, max_tokens: 20 });
    return answer.choices[0].message.content;
  },
  'openai-node responses': async (model) => {
    const answer = await openai.responses.create({ model, input: 'hello', max_output_tokens: 20 });
    return answer.output_text;
  },
  'anthropic-node': async (model) => {
    const answer = await anthropic.messages.create({ model, messages, max_tokens: 20 });
    return answer.content[0].text;
  },
  'Vercel AI SDK': async (model) => {
    const prompt = 'hello';
    const answer = await generateText({
      model: vercel(model), prompt, maxOutputTokens: 20, maxRetries: 0,
    });
    return answer.text;
  },
};

function report(name, truth) {
  console.log(`${truth ? 'ok  ' : 'FAIL'} ${name}`);
  if (!truth) process.exitCode = 1;
}

for (const [name, call] of Object.entries(clients)) {
  report(`${name}: answer`, Boolean(await call('slow')));
  try {
    console.log(`     ${name} took an error for an answer: ${await call('never')}`);
    report(`${name}: error`, false);
  } catch (error) {
    report(`${name}: error (${error.name})`, true);
  }
}
