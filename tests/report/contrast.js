// The rules of WCAG 2.1 A and AA, contrast among them, on a page in the light and the dark scheme and at two widths:
//   npm install axe-core puppeteer-core && node tests/report/contrast.js PAGE [CHROME]
// Also: nothing is said on the console, nothing is fetched, nothing is wider than the window.
const { readFileSync } = require("fs");
const { createRequire } = require("module");
const { resolve } = require("path");
const find = createRequire(process.cwd() + "/");
const [file, executablePath = "/usr/bin/google-chrome"] = process.argv.slice(2);

async function look(browser, scheme, width) {
  const page = await browser.newPage();
  const wrong = [];
  page.on("console", message => wrong.push(`console: ${message.text()}`));
  page.on("request", asked => asked.url().startsWith("data:") || asked.isNavigationRequest() || wrong.push(`request: ${asked.url()}`));
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.setViewport({ width, height: 900 });
  await page.goto(`file://${resolve(file)}`);
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (wider > 0) wrong.push(`${wider} pixels wider than the window`);
  await page.evaluate(() => document.querySelectorAll("details").forEach(part => (part.open = true)));
  await page.evaluate(readFileSync(find.resolve("axe-core/axe.min.js"), "utf8"));
  const { violations } = await page.evaluate(() => axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] }));
  return [...wrong, ...violations.map(one => `${one.id}: ${one.nodes.map(node => node.html).join("; ")}`)];
}

(async () => {
  const browser = await find("puppeteer-core").launch({ executablePath, args: ["--no-sandbox"] });
  let all = [];
  for (const scheme of ["light", "dark"]) for (const width of [1300, 390]) all = all.concat(await look(browser, scheme, width));
  await browser.close();
  console.log(all.join("\n") || "nothing to complain of");
  process.exit(all.length ? 1 : 0);
})();
