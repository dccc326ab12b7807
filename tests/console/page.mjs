// How the page behaves for those who leave it open, use a keyboard, or hear it: sessions that end, tabs that are
// hidden, dialogs, links, and what a screen reader speaks.

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** A pool of its own replicas, behind a port that asks for a token. */
function locked({ binary, folder, token, admin }) {
  return `
gateway: {listen: "127.0.0.1:0"}
admin: {listen: "${admin}", tokenFile: ${token}}
pools:
- name: chat
  models: [chat]
  target: {processes: {command: [${binary}, vllm-sim, --port, "{port}"], logDir: ${folder}/logs}}
`;
}

/** Notes each text that comes into a live region from now on, as a screen reader would speak it. */
async function listen(page) {
  await page.evaluate(() => {
    window.spoken = [];
    const live = "[role=alert], [role=status], [aria-live]";
    new MutationObserver((changes) => {
      for (const { target } of changes) {
        const region = (target.nodeType === Node.TEXT_NODE ? target.parentElement : target)?.closest(live);
        if (region?.textContent) window.spoken.push(region.textContent);
      }
    }).observe(document, { subtree: true, childList: true, characterData: true });
  });
}

export const steps = ({ binary, folder, forebay, start, open, see, config, shoot, PATIENCE }) => {
  async function logIn(page, token) {
    await page.getByLabel("Token").fill(token);
    await page.getByRole("button", { name: "Log in" }).click();
    await see(page, "#live", /^live$/);
  }

  /** Makes the page believe that its tab is hidden or in view: Chromium without a screen shows them all. */
  async function turn(page, hidden) {
    await page.evaluate((hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  }

  return {
    async "a session that ends is seen on an open page"() {
      const token = config("ending-token", "first\n");
      const file = config("ending.yaml", locked({ binary, folder, token, admin: "127.0.0.1:0" }));
      const { admin, child } = await forebay("run", "--config", file);
      const page = await open(`${admin}#/pool/chat`);
      await logIn(page, "first");
      await page.getByRole("button", { name: "Wake" }).click();
      // The token changes: the open feed ends, and so does the dialog's question.
      writeFileSync(token, "second\n");
      await see(page, "h1", /Log in/);
      await see(page, "#live", /logged out/);
      assert.equal(await page.locator("dialog[open]").count(), 0);

      // A command finds out too.
      await logIn(page, "second");
      await page.getByRole("button", { name: "Wake" }).click();
      await page.route("**/pools/chat/wake", (route) => route.fulfill({ status: 401 }));
      await page.locator("dialog").getByRole("button", { name: "Wake" }).click();
      await see(page, "h1", /Log in/);
      await page.unroute("**/pools/chat/wake");

      // Another process knows no session: its login shows no loss.
      await logIn(page, "second");
      child.kill("SIGKILL");
      await see(page, "#lost", /the live feed is lost.*for \d+ s/);
      const again = config("again.yaml", locked({ binary, folder, token, admin: new URL(admin).host }));
      await forebay("run", "--config", again);
      await see(page, "h1", /Log in/);
      await sleep(2500);
      assert.ok(await page.locator("#lost").isHidden());
      assert.deepEqual(page.faults, []);
      await page.context().close();
    },

    async "a proxy with a name of its own passes the console on"() {
      const token = config("proxied-token", "staple\n");
      const file = config("proxied.yaml", locked({ binary, folder, token, admin: "127.0.0.1:0" }));
      const { admin } = await forebay("run", "--config", file);
      const port = 30000 + (process.pid % 10000);
      const at = join(folder, "nginx");
      mkdirSync(at);
      const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((of) => `${of}_temp_path ${at}/${of};`).join("\n");
      const nginx = config("nginx.conf", `daemon off;\nmaster_process off;\npid ${at}/pid;\nevents {}\nhttp {\naccess_log off;\n${paths}\nserver {\nlisten 127.0.0.1:${port};\nlocation / {\nproxy_pass ${admin};\nproxy_set_header Host $http_host;\n}\n}\n}\n`);
      await start("nginx", ["-p", at, "-e", "stderr", "-c", nginx, "-g", "error_log stderr notice;"], /(nginx\/\S+)/);
      const page = await open(`http://console.test:${port}/#/pool/chat`);
      await logIn(page, "staple");
      await page.getByRole("button", { name: "Pause" }).click();
      await page.locator("dialog").getByRole("button", { name: "Pause" }).click();
      await see(page, ".override", /paused by an operator/);
      await page.context().close();
    },

    async "seven tabs of one browser all work, since hidden ones hold no connection"() {
      const { admin } = await forebay("dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0");
      const first = await open(admin);
      await see(first, "#live", /^live$/);
      const others = [];
      for (let i = 0; i < 6; i++) {
        await turn(others.at(-1) ?? first, true);
        const page = await first.context().newPage();
        await page.goto(admin);
        await see(page, "#live", /^live$/);
        others.push(page);
      }
      await see(first, "#live", /^connecting$/);
      assert.ok(await first.locator("#lost").isHidden(), "a tab that rests has lost nothing");
      await turn(others.at(-1), true);
      await turn(first, false);
      await see(first, "#live", /^live$/);
      await first.context().close();
    },

    async "links, dialogs and live regions work with a keyboard and a screen reader"() {
      const { child, admin } = await forebay("dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cold-start", "1s", "--idle", "10m");
      const page = await open(admin);
      await see(page, ".rows .cell.name", /sim/);
      await page.getByRole("row").getByRole("link", { name: "sim" }).press("Enter");
      await see(page, "h1", /^sim$/);
      await see(page, ".pool", /the count has not changed/);

      // The skip link stays on the page, and an address that names nothing is the overview.
      await page.locator(".skip").press("Enter");
      assert.equal(await page.evaluate(() => document.activeElement.id), "main");
      await see(page, "h1", /^sim$/);
      await page.evaluate(() => (location.hash = "#/pool/%"));
      await see(page, ".found", /1 pool/);
      await page.goBack();
      await see(page, "h1", /^sim$/);

      await page.getByRole("button", { name: "Wake" }).click();
      await page.locator("dialog").getByRole("button", { name: "Wake" }).click();
      await see(page, ".decision", /scaling 0 → 1/);
      await page.getByText("The count has not changed").waitFor({ state: "hidden", timeout: PATIENCE });

      // A drain that ends later closes no other dialog, and its failure is not lost.
      let answer;
      await page.route("**/drain?**", async (route) => {
        await new Promise((resolve) => (answer = resolve));
        await route.fulfill({ status: 504, body: "not drained in time\n" }).catch(() => {});
      });
      await page.getByRole("button", { name: /^Drain 127/ }).click();
      await page.locator("dialog").getByRole("button", { name: "Drain" }).click();
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: "Set count…" }).click();
      answer();
      await see(page, "#toast.bad", /Drain 127\S+\? not drained in time/);
      assert.ok(await page.getByRole("spinbutton", { name: "Replicas" }).isVisible());
      await page.keyboard.press("Escape");
      // Nor does it keep one of the browser's connections for minutes.
      await page.getByRole("button", { name: /^Drain 127/ }).click();
      await page.locator("dialog").getByRole("button", { name: "Drain" }).click();
      await see(page, "#toast", /still finishes its requests/);
      assert.equal(await page.locator("dialog[open]").count(), 0);

      // The answer is spoken once it is there, not token by token.
      await see(page, ".standing", /1 ready/);
      await listen(page);
      await page.getByLabel("Message").fill("hello");
      await page.getByRole("button", { name: "Send" }).click();
      await see(page, ".chat + .note", /\d+ tokens, .* a second/);
      await page.waitForFunction(() => document.querySelector(".spoken").textContent.includes(document.querySelector(".answer").textContent.slice(-20)), null, { timeout: PATIENCE });
      const spoken = await page.evaluate(() => window.spoken);
      assert.ok(spoken.length <= 6, `${spoken.length} texts: ${spoken.slice(0, 9).join("\n")}`);
      // A loss is spoken once, though its time runs on.
      child.kill("SIGSTOP");
      await see(page, "#lost", /for \d+ s/);
      await listen(page);
      await sleep(3500);
      assert.deepEqual(await page.evaluate(() => window.spoken.filter((text) => /lost/.test(text))), []);
      child.kill("SIGCONT");
      await see(page, "#live", /^live$/);
      assert.deepEqual(page.faults, []);
      await page.context().close();
    },

    async "try it names the replica and the hold of a request that got heartbeats, also through another process"() {
      const token = config("try-token", "horse\n");
      const port = 30000 + ((process.pid + 1) % 10000);
      const pools = `pools:
- name: chat
  models: [chat]
  hold: {heartbeat: 500ms}
  target: {processes: {command: [${binary}, vllm-sim, chat, --port, "{port}", --cold-start, 3s], logDir: ${folder}/try}}
`;
      const gateway = config("try-gateway.yaml", `
gateway: {listen: "127.0.0.1:${port}", scaler: "127.0.0.1:${port + 1}"}
admin: {listen: "127.0.0.1:${port + 2}", tokenFile: ${token}}
${pools}`);
      const scaler = config("try-scaler.yaml", `
scaler: {gateways: ["127.0.0.1:${port + 2}"], gatewayAddress: "127.0.0.1:${port}"}
admin: {listen: "127.0.0.1:${port + 1}", tokenFile: ${token}}
${pools}`);
      const { found } = await start(binary, ["scaler", "--config", scaler], /console on (http:[^\s"]+)/);
      await start(binary, ["gateway", "--config", gateway], /listening on (http:[^\s"]+)/);
      const page = await open(`${found[0]}#/pool/chat`);
      await logIn(page, "horse");
      await page.getByLabel("Message").fill("hello");
      await page.getByRole("button", { name: "Send" }).click();
      await see(page, ".chat + .note", /first token after .* of that held [\d.]+ s · \d+ tokens, .* a second · by 127\.0\.0\.1:\d+ · request try-\w+$/);
      await shoot(page, "try-it", ".chat");
      assert.deepEqual(page.faults, []);
      await page.context().close();
    },

    async "every trouble can be reached"() {
      const pools = Array.from({ length: 9 }, (_, n) => `- {name: broken-${n}, models: [m${n}], target: {processes: {command: ["/none/${n}", "{port}"], ports: ${27000 + n * 10}-${27009 + n * 10}, logDir: ${folder}/broken-${n}}}, scaling: {minReplicaCount: 1}}`);
      const { admin } = await forebay("run", "--config", config("broken.yaml", `scaler: {gateways: [${Array.from({ length: 8 }, (_, n) => `"127.0.0.1:${n + 1}"`)}]}\ngateway: {listen: "127.0.0.1:0"}\nadmin: {listen: "127.0.0.1:0"}\npools:\n${pools.join("\n")}\n`));
      const page = await open(admin);
      await page.waitForFunction(() => document.querySelectorAll(".troubles li").length === 6, null, { timeout: PATIENCE });
      await page.getByRole("button", { name: /^Show 3 of 3 more$/ }).click();
      assert.equal(await page.locator(".troubles li").count(), 9);
      for (let n = 0; n < 9; n++) await page.locator(".troubles").getByRole("link", { name: `broken-${n}`, exact: true }).waitFor({ timeout: PATIENCE });
      await shoot(page, "troubles");
      await page.getByRole("button", { name: "Show fewer" }).click();
      assert.equal(await page.locator(".troubles li").count(), 6);
      assert.deepEqual(page.faults, []);
      await page.context().close();
    },
  };
};
