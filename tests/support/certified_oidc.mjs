// npm's oidc-provider, certified by the OpenID Foundation, with its own pages for signing in. Anybody who signs in is
// who they say. Arguments: the package's folder, the port, and a JSON list of [client id, callback].
import { pathToFileURL } from "node:url";

const [folder, port, clients] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(`${folder}/lib/index.js`));
const issuer = `http://127.0.0.1:${port}`;

const provider = new Provider(issuer, {
  clients: JSON.parse(clients).map(([client_id, callback]) => ({
    client_id,
    client_secret: "s".repeat(40),
    redirect_uris: [callback],
    post_logout_redirect_uris: [callback],
  })),
  claims: { openid: ["sub"], email: ["email"], profile: ["preferred_username"] },
  conformIdTokenClaims: false, // claims of the scopes are in the ID token
  cookies: { keys: ["k".repeat(40)] },
  findAccount: (_ctx, id) => ({
    accountId: id,
    // who signs in as nobody-… has no user name
    claims: () => ({ sub: id, email: `${id}@example.org`, ...(id.startsWith("nobody") ? {} : { preferred_username: `user-${id}` }) }),
  }),
});
provider.listen(Number(port), "127.0.0.1");
