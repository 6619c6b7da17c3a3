// The policies of the demo "stars", one after the other, and who may reach whom after each.
const policy = (namespace, name, spec) => `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: ${name}
  namespace: ${namespace}
spec:
${spec.trim().split('\n').map((line) => `  ${line}`).join('\n')}
`;

const BACKEND = 'stars/Deployment/backend';
const FRONTEND = 'stars/Deployment/frontend';
const CLIENT = 'client/Deployment/client';
const UI = 'management-ui/Deployment/management-ui';

const deny = 'podSelector: {}\npolicyTypes:\n- Ingress';
const fromUi = `podSelector: {}
ingress:
- from:
  - namespaceSelector:
      matchLabels:
        role: management-ui`;

// Nobody isolates the management UI, so everybody reaches it throughout.
const toUi = [BACKEND, FRONTEND, CLIENT].map((from) => `${from} > ${UI}`);

export const STARS = [
  {
    name: 'deny-stars',
    text: policy('stars', 'default-deny', deny),
    allowed: [...toUi, ...[UI, FRONTEND, BACKEND].map((from) => `${from} > ${CLIENT}`)],
  },
  { name: 'deny-client', text: policy('client', 'default-deny', deny), allowed: toUi },
  {
    name: 'ui-to-stars',
    text: policy('stars', 'allow-ui', fromUi),
    allowed: [...toUi, `${UI} > ${BACKEND}`, `${UI} > ${FRONTEND}`],
  },
  {
    name: 'ui-to-client',
    text: policy('client', 'allow-ui', fromUi),
    allowed: [...toUi, `${UI} > ${BACKEND}`, `${UI} > ${FRONTEND}`, `${UI} > ${CLIENT}`],
  },
  {
    name: 'backend',
    text: policy('stars', 'backend-policy', `podSelector:
  matchLabels:
    role: backend
ingress:
- from:
  - podSelector:
      matchLabels:
        role: frontend
  ports:
  - protocol: TCP
    port: 6379`),
    allowed: [...toUi, `${UI} > ${BACKEND}`, `${UI} > ${FRONTEND}`, `${UI} > ${CLIENT}`, `${FRONTEND} > ${BACKEND}`],
  },
  {
    name: 'frontend',
    text: policy('stars', 'frontend-policy', `podSelector:
  matchLabels:
    role: frontend
ingress:
- from:
  - namespaceSelector:
      matchLabels:
        role: client
  ports:
  - protocol: TCP
    port: 80`),
    allowed: [
      ...toUi, `${UI} > ${BACKEND}`, `${UI} > ${FRONTEND}`, `${UI} > ${CLIENT}`, `${FRONTEND} > ${BACKEND}`, `${CLIENT} > ${FRONTEND}`,
    ],
  },
];
