-- Ends the rest of all tenants, because the vendor's limits have changed. Each takes its turn, and rests again if it has to.
-- ARGV: now, lines.
even_when_full()
if not epoch() then return 0 end
for line = 0, tonumber(ARGV[2]) - 1 do
  for _, tenant in ipairs(redis.call('ZRANGE', of(line, 'resting'), 0, -1)) do take_turn(line, tenant) end
  redis.call('DEL', of(line, 'resting'))
end
ring()
return 1
