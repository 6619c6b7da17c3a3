// Prints thirty namespaces of three workloads, ten pods each, with a policy for the api and the db of each.
const yaml = [];
const add = (object) => yaml.push(JSON.stringify(object));
const peer = (app) => ({ podSelector: { matchLabels: { app } } });
for (let team = 0; team < 30; team++) {
  const namespace = `team-${String(team).padStart(2, '0')}`;
  add({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } });
  for (const [app, count, port] of [['web', 4, 80], ['api', 4, 8080], ['db', 2, 5432]]) {
    for (let pod = 0; pod < count; pod++) {
      const hash = '5d4f8c7b9';
      add({
        apiVersion: 'v1', kind: 'Pod',
        metadata: {
          name: `${app}-${hash}-${pod}`, namespace, labels: { app, 'pod-template-hash': hash },
          ownerReferences: [{ apiVersion: 'apps/v1', kind: 'ReplicaSet', name: `${app}-${hash}`, uid: 'u', controller: true }],
        },
        spec: { containers: [{ name: 'c', image: 'i', ports: [{ containerPort: port }] }] },
      });
    }
  }
  const next = `team-${String((team * 7 + 1) % 30).padStart(2, '0')}`;
  const other = { namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': next } }, ...peer('web') };
  for (const [app, from, port] of [['db', [peer('api')], 5432], ['api', [peer('web'), other], 8080]]) {
    add({
      apiVersion: 'networking.k8s.io/v1', kind: 'NetworkPolicy', metadata: { name: app, namespace },
      spec: { ...peer(app), ingress: [{ from, ports: [{ port }] }] },
    });
  }
}
console.log(yaml.join('\n---\n'));
